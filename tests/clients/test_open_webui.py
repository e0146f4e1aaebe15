"""Tests with Open WebUI in a headless Chromium: what people do in a chat."""

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.clients.documented import setup_of
from tests.clients.program import end_processes, environment_of, installed
from tests.clients.scripted.script import Call, Script, Step, Turn
from tests.clients.scripted.server import Recorded, ScriptedServer

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

PATIENCE_S = 120.0  # for a step in the page; a busy machine takes a tenth of it
DEMO_S = 280.0  # for an answer of the demo, whose prompt has the tools of Open WebUI
START_S = 280.0  # in which Open WebUI must have made its database
TEA = "Tea is made of leaves and hot water. "
# Nothing is fetched or reported. Models of speech and embeddings, which need torch, are left out.
ALONE = {
    "USE_SLIM_DOCKER": "True",
    "OFFLINE_MODE": "True",
    "HF_HUB_OFFLINE": "1",
    "ANONYMIZED_TELEMETRY": "False",
    "SCARF_NO_ANALYTICS": "True",
    "DO_NOT_TRACK": "True",
}


@pytest.fixture(scope="module")
def site(
    scripted_session: ScriptedServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Run Open WebUI as its section of docs/clients.md says; return its address."""
    home = tmp_path_factory.mktemp("open-webui")
    binaries = installed("open-webui", "open-webui")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    commands = setup_of("Open WebUI").of(scripted_session.origin, "unused").commands
    assert "--port 8080" in commands
    log = home / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-eu", "-c", commands.replace("--port 8080", f"--port {port}")],
            cwd=home,
            env=environment_of(binaries, home) | ALONE | {"DATA_DIR": str(home / "data")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(address, process, log)
        yield address
    finally:
        end_processes(home)
        process.wait()


def wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until Open WebUI answers; fail with the end of its log if it does not."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=10):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    pytest.fail(f"Open WebUI did not start: {log.read_text(errors='replace')[-3000:]}")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(
            executable_path=program,
            # Every other name leads nowhere, so the page cannot leave the machine.
            args=["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
        )
        yield started
        started.close()


class Chat:
    """A new chat in the page of a browser."""

    def __init__(self, browser: Any, address: str, model: str) -> None:
        self.page = browser.new_page()
        self.page.set_default_timeout(PATIENCE_S * 1000)
        # The news of the release cover the page at some time after it is shown.
        news = self.page.get_by_role("button", name="Okay, Let's Go!")
        self.page.add_locator_handler(news, lambda button: button.click())
        self.page.goto(f"{address}/?models={model}")
        playwright.expect(self.button(f"Selected model: {model}")).to_be_visible(
            timeout=PATIENCE_S * 1000
        )

    def button(self, name: str) -> Any:
        return self.page.get_by_role("button", name=name, exact=True).last

    def say(self, text: str) -> None:
        self.page.locator("#chat-input").click()
        self.page.keyboard.type(text)
        self.button("Send message").click()

    def see(self, text: str | re.Pattern[str]) -> None:
        """Wait until the last answer has a text."""
        answer = self.page.locator(".chat-assistant").last
        playwright.expect(answer).to_contain_text(text, timeout=PATIENCE_S * 1000)

    def see_end(self, patience_s: float = PATIENCE_S) -> str:
        """Wait until the last answer has ended, and return what it shows."""
        stop = self.page.get_by_role("button", name="Stop", exact=True)
        playwright.expect(stop).to_have_count(0, timeout=patience_s * 1000)
        playwright.expect(self.button("Regenerate")).to_be_visible(timeout=PATIENCE_S * 1000)
        return " ".join(self.page.locator(".chat-assistant").last.inner_text().split())

    @property
    def num_answers(self) -> int:
        return int(self.page.locator(".chat-assistant").count())


@pytest.fixture
def new_chat(browser: Any, site: str) -> Iterator[Any]:
    """Return a function that opens a chat with a model."""
    chats: list[Chat] = []

    def open_chat(model: str) -> Chat:
        chats.append(Chat(browser, site, model))
        return chats[-1]

    yield open_chat
    for chat in chats:
        chat.page.close()


def conversations(server: ScriptedServer) -> list[tuple[Recorded, list[tuple[str, str]]]]:
    """Return the requests of chats with their messages, without those for titles and the like."""
    found = []
    for request in server.requests():
        body = json.loads(request.body) if request.method == "POST" else {}
        if body.get("stream"):
            messages = [(m["role"], m.get("content") or "") for m in body["messages"]]
            found.append((request, messages))
    return found


def test_the_served_models_are_listed_and_the_loaded_one_comes_first(
    scripted: ScriptedServer, new_chat: Any
) -> None:
    model = scripted.play("hermes", Script(Turn("Say hello", Step("Hello."))))
    chat = new_chat(model)
    chat.say("Say hello.")  # an earlier test may have left another model loaded
    chat.see("Hello.")
    chat.see_end()
    chat = new_chat(model)
    chat.button(f"Selected model: {model}").click()
    options = chat.page.get_by_role("option")
    playwright.expect(options.first).to_be_visible()
    names = options.all_inner_texts()
    assert names[0].strip() == model
    assert {"demo", "demo-64k", "demo-plain"} <= {name.strip() for name in names}


def test_an_answer_is_stopped_continued_and_regenerated_and_the_chat_goes_on(
    scripted: ScriptedServer, new_chat: Any
) -> None:
    script = [Turn("about tea", Step(TEA * 20)), Turn("And coffee", Step("Coffee is of beans."))]
    model = scripted.play("hermes", Script(*script, first_after_s=0.2, pass_s=0.2))
    chat = new_chat(model)
    chat.say("Tell me about tea.")
    chat.see("hot water")
    chat.button("Stop").click()
    stopped = chat.see_end()
    assert TEA.strip() in stopped and len(stopped) < len(TEA * 20)

    scripted.play("hermes", Script(*script))
    chat.button("Continue Response").click()
    chat.see(re.compile(rf"({re.escape(TEA.strip())}.*){{20}}", re.DOTALL))
    assert stopped.split(model)[-1].strip()[:100] in chat.see_end()
    assert chat.num_answers == 1

    chat.button("Regenerate").click()
    chat.page.get_by_role("button", name="Try Again").click()
    chat.see_end()
    chat.say("And coffee?")
    chat.see("Coffee is of beans.")
    chat.see_end()

    (first, asked), (_, continued), (_, again), (_, second) = conversations(scripted)
    assert "[DONE]" not in first.answer, "the server must notice that the client has left"
    assert asked == again == [("user", "Tell me about tea.")]
    assert continued[:1] == asked and continued[1][0] == "assistant"
    assert continued[1][1].startswith(TEA)
    assert [role for role, _ in second] == ["user", "assistant", "user"]
    assert scripted.failed() == []
    assert {r.ignored for r in scripted.requests()} == {""}


@pytest.mark.parametrize("form", ["hermes", "qwen3_coder", "harmony"])
def test_a_tool_is_called_and_the_thought_is_folded_away(
    scripted: ScriptedServer, new_chat: Any, form: str
) -> None:
    call = Call("calculate_timestamp", {"days_ago": 3})
    steps = [Step("", "I have to look.", [call]), Step("It was a Wednesday.", "Now I know.")]
    thanked = Turn("Thank you", Step("With pleasure."))
    model = scripted.play(form, Script(Turn("three days ago", *steps), thanked))
    chat = new_chat(model)
    chat.say("Which day was it three days ago?")
    chat.see("It was a Wednesday.")
    shown = chat.see_end()
    assert "calculate_timestamp" in shown
    assert "I have to look." not in shown and "<" not in shown
    *_, (_, messages) = conversations(scripted)
    assert [role for role, _ in messages] == ["user", "assistant", "tool"]
    assert "calculated_timestamp" in messages[-1][1]

    chat.say("Thank you.")
    chat.see("With pleasure.")
    chat.see_end()
    *_, (_, messages) = conversations(scripted)
    assert [role for role, _ in messages] == ["user", "assistant", "tool", "assistant", "user"]
    assert scripted.failed() == []


def test_the_demo_answers_beside_all_built_in_tools(
    scripted: ScriptedServer, new_chat: Any
) -> None:
    chat = new_chat("demo-64k")
    chat.say("Tell me a story.")
    chat.see_end(DEMO_S)
    (asked, _), *_ = conversations(scripted)
    assert len(json.loads(asked.body)["tools"]) > 20
    assert asked.answer.rstrip().endswith("[DONE]")
    assert scripted.failed() == []
