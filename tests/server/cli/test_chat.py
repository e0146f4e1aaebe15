"""`understudy chat`: messages and commands that are typed, and what is shown and sent."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from rich.text import Text

from server.cli import main
from server.cli.conversation import PARAMETERS
from server.cli.paint import Painter, shown_text
from server.cli.race import Lane, verdict
from server.cli.servers import running_servers
from server.schemas.chat import ChatRequest
from tests.demo_server import ROOT
from tests.server.fake_engine import EOS, FakeEngines, ids_of

Capture = pytest.CaptureFixture[str]
Talk = Callable[..., str]
Streams = Callable[..., tuple[str, str]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the user's servers, and write files into an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("UNDERSTUDY_URL", "UNDERSTUDY_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def streams(url: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> Streams:
    """Return a function that types lines into a chat, and returns its stdout and stderr."""

    def run(*lines: str, options: tuple[str, ...] = ()) -> tuple[str, str]:
        typed = iter(lines)

        def read(_: str) -> str:
            try:
                line = next(typed)
            except StopIteration:
                raise EOFError from None
            if line == "^C":
                raise KeyboardInterrupt
            return line

        monkeypatch.setattr("builtins.input", read)
        assert main.main(["chat", *options, "--url", url]) == 0
        shown = capsys.readouterr()
        return shown.out, shown.err

    return run


@pytest.fixture
def talk(streams: Streams) -> Talk:
    """Return a function that types lines into a chat, and returns all that it prints."""
    return lambda *lines, **options: "".join(streams(*lines, **options))


def sent(engines: FakeEngines, index: int = -1) -> str:
    """Return the prompt of a request as text."""
    marks = {256: "<eos>", 257: "<turn>"}
    return "".join(marks.get(i) or chr(i) for i in engines.engine.requests[index].prompt)


def test_messages_are_answered_with_the_conversation_before_them(
    talk: Talk, engines: FakeEngines
) -> None:
    out = talk("hi", "and\\", "more", options=("main", "--system", "be brief"))
    assert out.count("Hello there.") == 2
    assert "13 tokens, 2.6 a pass" in out and "seed " in out
    assert "/help lists" not in out, "lines come from a program, which needs no prompts"
    want = "system:be brief<eos><turn>user:hi<eos><turn>assistant:Hello there.<eos><turn>user:and\n"
    assert want in sent(engines)


def test_commands_change_what_is_sent(talk: Talk, engines: FakeEngines, home: Path) -> None:
    lines = ("/seed 7", "/set temperature 0.5", "/set stop there", "hi", "/seed", "/set stop", "hi")
    out = talk(*lines, "/history", "/save chat.json", "/save chat.md", "/clear", "/history")
    first, second = engines.engine.requests
    assert (first.params.seed, first.params.temperature, first.params.stop) == (7, 0.5, ("there",))
    assert second.params.seed != 7 and second.params.stop == ()
    assert "user: hi\nassistant: Hello \nuser: hi\nassistant: Hello there." in out
    saved = json.loads((home / "chat.json").read_text())
    assert saved["temperature"] == 0.5 and len(saved["messages"]) == 4
    assert "**assistant**\n\nHello there." in (home / "chat.md").read_text()
    assert "nothing was said yet" in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/pait", "Did you mean /paint?"),
        ("/set temprature 1", "Did you mean temperature?"),
        ("/set temperature 9", "Invalid value for 'temperature': Input should be less than"),
        ("/set stop 5", "Invalid value for 'stop'"),
        ("/set reasoning_effort x", "Invalid value for 'reasoning_effort'"),
        ("/seed x", "is not a seed"),
        ("/save", "give a file"),
        ("/save /proc/none/x", "/proc/none/x: cannot be written: No such file or directory\n"),
        ("/race", "write a message first"),
        ("/help", "Ctrl-C stops an answer"),
    ],
)
def test_mistakes_are_named_and_the_chat_goes_on(talk: Talk, line: str, words: str) -> None:
    out = talk(line, "hi")
    assert words in out and "Hello there." in out, "a value that is refused is not sent"


def test_each_parameter_is_one_of_the_api() -> None:
    assert set(PARAMETERS) < set(ChatRequest.model_fields)


def test_a_file_is_replaced_only_on_demand(talk: Talk, home: Path) -> None:
    (home / "chat.md").write_text("mine")
    assert "chat.md exists; /save! chat.md replaces it" in talk("hi", "/save chat.md")
    assert (home / "chat.md").read_text() == "mine"
    assert "chat.md has 2 messages" in talk("hi", "/save! chat.md")
    assert "Hello there." in (home / "chat.md").read_text()


def test_stdout_has_only_answers_and_what_commands_show(streams: Streams) -> None:
    out, err = streams("/set top_k 3", "/sett", "hi", "/history", "/paint", "again")
    assert out == "Hello there.\nuser: hi\nassistant: Hello there.\nHello there.\n"
    for note in ("top_k 3", "unknown command /sett", "tokens/s, seed", "painted", "subspec 62%"):
        assert note in err


class Moment(asyncio.Event):
    """An event that happens by itself."""

    async def wait(self) -> Literal[True]:
        await asyncio.sleep(0.05)
        return True


def test_a_restart_of_the_engine_is_told_in_the_middle_of_an_answer(
    streams: Streams, engines: FakeEngines
) -> None:
    engines.script.restart = Moment()
    out, err = streams("hi", "hi")
    assert out == "Hello there.\nHello there.\n"
    assert err.count("The engine is restarting. The answer then goes on.\n") == 2


def test_painted_answers_have_the_shares_of_each_source(talk: Talk) -> None:
    out = talk("/paint", "hi", "/paint", "hi")
    assert out.count("Hello there.") == 2
    assert out.count("subspec 62%, target 38%") == 1


def test_a_race_says_that_the_answers_are_identical(talk: Talk, engines: FakeEngines) -> None:
    out = talk("/seed 5", "/race tell me", "hi", "/race")
    assert out.count("identical: 13 of 13 tokens") == 2
    assert out.count("drafted: 13 tokens, 2.6 a pass") == 2
    first, second, _, third, _ = engines.engine.requests
    assert first.prompt == second.prompt and {first.params.seed, second.params.seed} == {5}
    assert {first.speculation.method, second.speculation.method} == {None, "none"}
    assert "tell me" not in sent(engines), "a race is no part of the conversation"
    assert third.prompt == engines.engine.requests[2].prompt


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ([1, 2, 3], [1, 2, 3], "identical: 3 of 3 tokens"),
        ([1, 2, 3], [1, 9, 3], "identical: 1 of 3 tokens. The answers differ"),
        ([1, 2], [1, 2, 3], "identical: 2 of 3 tokens. The answers differ"),
        ([], [], "identical: 0 of 0"),
    ],
)
def test_the_verdict_counts_equal_tokens(first: list[int], second: list[int], words: str) -> None:
    assert verdict((Lane("a", ids=first), Lane("b", ids=second))).plain.startswith(words)


def test_the_verdict_names_the_answer_that_failed() -> None:
    assert "without: gone" in verdict((Lane("with"), Lane("without", error="gone"))).plain


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on(
    talk: Talk, engines: FakeEngines, monkeypatch: pytest.MonkeyPatch
) -> None:
    engines.script.answers = lambda choice: (*ids_of("word " * 200), EOS)
    engines.script.beat = 0.01
    shown = threading.Event()
    append = Text.assemble

    def interrupt(*args: Any, **kwargs: Any) -> Text:
        if not shown.is_set():
            shown.set()
            signal.raise_signal(signal.SIGINT)
        return append(*args, **kwargs)

    monkeypatch.setattr("server.cli.chat.Text.assemble", interrupt)
    out = talk("hi", "^C", "/history")
    assert "stopped" in out and "/quit or Ctrl-D" in out
    while not engines.engine.request_closed.is_set():  # else the test times out
        time.sleep(0.01)
    assert out.count("word") < 200


def test_text_of_the_model_cannot_control_the_terminal() -> None:
    hostile = "a\x1b[2Jb\x07\u202e\r\n\tc\U0001f468\u200d\U0001f469"
    shown = shown_text(hostile)
    assert shown == "a\\x1b[2Jb\\x07\\u202e\\r\n\tc\U0001f468\u200d\U0001f469"
    painted = Painter().paint([{"token": hostile, "source": "[red]"}])
    assert painted.plain == shown


def test_each_source_has_a_style_of_its_own() -> None:
    painter = Painter()
    sources = ["target", "subspec", "ngram", "grammar", "prediction"]
    painted = painter.paint({"token": name, "source": name} for name in sources)
    styles = {str(span.style) for span in painted.spans}
    assert len(styles) == 4, "the target's own tokens are plain"
    assert painter.legend().plain == ", ".join(f"{name} 20%" for name in sources)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--url", "http://127.0.0.1:1"), "no server answers"),
        (("mian", "--url", "URL"), "Did you mean main?"),
        (("nothing", "--url", "URL"), "It has: main, gpt-x, org/other."),
    ],
)
def test_a_server_or_model_that_is_not_there_is_named(
    options: tuple[str, ...], words: str, url: str, capsys: Capture
) -> None:
    assert main.main(["chat", *(url if word == "URL" else word for word in options)]) == 1
    assert words in capsys.readouterr().err


def test_a_server_that_cannot_be_started_says_why(
    home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("UNDERSTUDY_LOG_FORMAT", "json")  # the reason is text all the same
    assert main.main(["chat", "no-such-model"]) == 1
    error = capsys.readouterr().err
    assert "could not be started: 'no-such-model' is neither a known model" in error


@pytest.mark.slow
def test_a_chat_starts_a_server_and_ends_it(home: Path) -> None:
    command = [sys.executable, "-m", "server.cli.main", "chat", "demo"]
    done = subprocess.run(
        command,
        input="/set max_tokens 8\nhi\n/race\n",
        capture_output=True,
        text=True,
        cwd=home,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HOME": str(home)},
        check=True,
    )
    assert "tokens/s, seed" in done.stderr and "identical: 8 of 8 tokens" in done.stdout
    state = home / ".local" / "state"
    assert list((state / "understudy" / "servers").iterdir())
    assert running_servers({"XDG_STATE_HOME": str(state)}) == []
