"""Calls in a text process: what one does to its worker is its own affair."""

import asyncio
import functools
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.errors import EngineDied, ModelError
from server.errors import ApiError
from server.text import client as client_module
from server.text.client import TextProcess
from server.text.limits import MB, Lane
from server.text.stages import Stage
from tests.server.text import work

ROOT = Path(__file__).parents[3]
DEMO = ROOT / "configs/demo/target"
SMALL = Lane(most_bytes=1000, workers=2, slow_workers=2, kept=1, seconds=0.3, memory=256 * MB)
LARGE = Lane(float("inf"), workers=1, slow_workers=0, kept=0, seconds=20, memory=256 * MB)


@asynccontextmanager
async def text_process(*lanes: Lane) -> AsyncIterator[TextProcess]:
    text = TextProcess(["tests.server.text.work"], lanes or (SMALL, LARGE))
    try:
        yield text
    finally:
        await text.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def has_ended(pid: int) -> bool:
    return not is_alive(pid)


# what is called, with what -> the error's code, parameter, and a part of its message
HARMFUL: list[tuple[Callable[..., Any], tuple[Any, ...], str, str | None, str]] = [
    (work.spin, (Stage.TEMPLATE,), "chat_template_error", "messages", "took more than 0.3 s"),
    (work.spin, (Stage.READING,), "request_too_complex", None, "took more than 0.3 s"),
    (work.spin, (Stage.TOKENIZER,), "tokenizer_error", None, "took more than 0.3 s"),
    (work.spin, (Stage.GRAMMAR,), "invalid_grammar", None, "took more than 0.3 s"),
    (work.hold_the_interpreter, (), "request_too_complex", None, "took more than 0.3 s"),
    (work.take_memory, (Stage.TEMPLATE,), "chat_template_error", "messages", "256 MiB of memory"),
    (work.abort, (), "tokenizer_error", None, "256 MiB of memory"),
    (work.panic, (), "tokenizer_error", None, "retry-limit-in-match over"),
]


async def test_whatever_a_call_does_is_an_answer_to_it_alone() -> None:
    async with text_process() as text:
        beside = asyncio.create_task(text.call(work.given, b"x" * 5000, "beside"))
        for function, args, code, param, message in HARMFUL:
            with pytest.raises(ApiError) as raised:
                await text.call(function, b"", *args)
            error = raised.value
            assert (error.status, error.code, error.param) == (400, code, param), function
            assert message in error.message, function
            assert await text.call(work.given, b"raw", {"a": 1}) == (3, {"a": 1})
        assert await beside == (5000, "beside")


async def test_results_and_exceptions_arrive_as_they_were(caplog: pytest.LogCaptureFixture) -> None:
    async with text_process() as text:
        assert await text.call(work.as_bytes, b"ab" * 300_000) == b"ab" * 600_000
        large = list(range(100_000))
        assert await text.call(work.given, b"", large) == (0, large)
        with pytest.raises(ApiError) as raised:
            await text.call(work.refuse, b"")
        error = raised.value
        assert (error.status, error.code, error.param, str(error)) == (422, "because", "x.y", "No.")
        with pytest.raises(RuntimeError, match="ZeroDivisionError"):
            await text.call(work.break_down, b"")


@pytest.mark.parametrize("slow_s", [client_module.SLOW_S, 0.05], ids=["usual", "while it starts"])
async def test_small_requests_do_not_wait_for_large_ones_nor_for_slow_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow_s: float
) -> None:
    """Calls that are made while the host starts free their slots, too."""
    monkeypatch.setattr(client_module, "SLOW_S", slow_s)
    files = [str(tmp_path / name) for name in "abc"]
    # On a busy machine the calls wait for long until the workers of the others have started.
    lanes = [replace(lane, seconds=60) for lane in (SMALL, LARGE)]
    async with text_process(*lanes) as text:
        large = asyncio.create_task(text.call(work.wait_for, b"x" * 5000, files[0]))
        slow = [asyncio.create_task(text.call(work.wait_for, b"", file)) for file in files[1:]]
        await until(lambda: all(Path(file).exists() for file in files))
        assert await text.call(work.given, b"", 1) == (0, 1), "both slots are taken by slow calls"
        for file in files:
            Path(file).unlink()
        await asyncio.gather(large, *slow)


async def test_workers_are_kept_but_give_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "IDLE_S", 0.05)
    async with text_process() as text:
        first = await text.call(work.process, b"")
        assert await text.call(work.keep_memory, b"") == first
        await until(lambda: not is_alive(first))
        second = await text.call(work.process, b"")
        large = await text.call(work.process, b"x" * 5000)
        await until(lambda: not is_alive(large))
        assert await text.call(work.process, b"") == second


async def test_a_call_whose_worker_is_killed_runs_once_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with text_process() as text:
        assert await text.call(work.die_unless, b"", str(tmp_path / "once")) == "done"
        os.kill(await text.call(work.process, b""), signal.SIGKILL)  # while it is idle
        assert await text.call(work.given, b"", 1) == (0, 1)
        with pytest.raises(ApiError) as raised:
            await text.call(work.die, b"")
        assert (raised.value.status, raised.value.code) == (503, "text_process_died")
        assert "ended twice during the same request" in caplog.text


async def test_a_host_that_dies_is_replaced_and_nobody_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with text_process() as text:
        file = tmp_path / "running"
        running = asyncio.create_task(text.call(work.wait_for, b"", str(file)))
        await until(lambda: file.exists() and file.read_text() != "")
        old = await text.call(work.host, b"")
        os.kill(old, signal.SIGKILL)
        async with asyncio.timeout(20):  # until it is noticed, its idle workers answer: init's now
            while await text.call(work.host, b"") in (old, 1):
                await asyncio.sleep(0.01)
        file.unlink()
        await running
        assert caplog.text.count("The text process ended") == 1


async def test_at_rest_the_host_has_ended_and_calls_that_run_are_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "running"
    async with text_process(replace(SMALL, seconds=60)) as text:
        text.rest()  # no host was started yet
        for _ in range(3):
            old = await text.call(work.host, b"")
            running = asyncio.create_task(text.call(work.wait_for, b"", str(file)))
            await until(lambda: file.exists() and file.read_text() != "")
            text.rest()
            assert await text.call(work.host, b"") != old, "the next call starts another host"
            text.rest()
            await until(functools.partial(has_ended, old))
            file.unlink()
            await running
        assert (await text.load(str(DEMO), None)).template, "so does the next load"
    assert caplog.text == "", "nothing died"


async def test_a_call_that_is_cancelled_ends_its_worker(tmp_path: Path) -> None:
    file = tmp_path / "running"
    async with text_process() as text:
        call = asyncio.create_task(text.call(work.wait_for, b"", str(file)))
        await until(lambda: file.exists() and file.read_text() != "")
        call.cancel()
        pid = int(file.read_text())
        await until(lambda: not is_alive(pid))
        assert await text.call(work.given, b"", 1) == (0, 1)


async def test_closing_ends_every_process_and_tells_whoever_waits(tmp_path: Path) -> None:
    file = tmp_path / "running"
    async with text_process() as text:
        host = await text.call(work.host, b"")
        call = asyncio.create_task(text.call(work.wait_for, b"", str(file)))
        await until(lambda: file.exists() and file.read_text() != "")
    with pytest.raises(EngineDied, match="shutting down"):
        await call
    assert not is_alive(host)
    await until(lambda: not is_alive(int(file.read_text())))


ORPHANS = """
import asyncio, sys
from server.text.client import TextProcess
from tests.server.text import work

async def main():
    text = TextProcess(["tests.server.text.work"])
    print(await text.call(work.host, b""), flush=True)
    await text.call(work.wait_for, b"", sys.argv[1])

if __name__ == "__main__":
    asyncio.run(main())
"""


async def test_no_process_outlives_the_front_end(tmp_path: Path) -> None:
    file, script = tmp_path / "running", tmp_path / "orphans.py"
    script.write_text(ORPHANS)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, script, file], env=environment, stdout=subprocess.PIPE, text=True
    ) as front_end:
        assert front_end.stdout is not None
        host = int(front_end.stdout.readline())
        await until(lambda: file.exists() and file.read_text() != "")
        front_end.kill()
    await until(lambda: not is_alive(host) and not is_alive(int(file.read_text())))


async def test_workers_inherit_no_socket_of_the_front_end() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        listener.set_inheritable(True)  # as some servers do
        inode = os.readlink(f"/proc/self/fd/{listener.fileno()}")
        async with text_process() as text:
            assert inode not in await text.call(work.open_files, b"")


async def test_workers_get_the_tokenizer_and_the_front_end_its_token_bytes() -> None:
    async with text_process(LARGE) as text:
        assert await text.call(work.given, b"", 1) == (0, 1)
        facts = await text.load(str(DEMO), None)
        assert len(facts.bytes) == await text.call_on_model(work.size_of_vocabulary, b"")
        assert "<|im_start|>" in facts.template
        old = await text.call(work.host, b"")
        os.kill(old, signal.SIGKILL)
        await until(lambda: not is_alive(old))
        assert await text.call_on_model(work.size_of_vocabulary, b"") == len(facts.bytes)


async def test_a_template_that_cannot_be_compiled_is_an_error_that_names_its_file(
    tmp_path: Path,
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((DEMO / name).read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ 9**(9**9) }}")  # jinja folds constants
    trial = Lane(float("inf"), workers=1, slow_workers=0, kept=1, seconds=1, memory=256 * MB)
    async with text_process(trial) as text:
        with pytest.raises(ModelError, match="it takes more than 1 s") as raised:
            await text.load(str(tmp_path), None)
        assert str(tmp_path / "chat_template.jinja") in str(raised.value)
        assert await text.call(work.given, b"", 1) == (0, 1)


async def test_a_template_that_never_ends_on_some_conversations_is_loaded(
    tmp_path: Path,
) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (tmp_path / name).write_bytes((DEMO / name).read_bytes())
    endless = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    chat_template = "{% if messages[0].role == 'system' %}" + endless + "{% endif %}"
    trial = Lane(float("inf"), workers=1, slow_workers=0, kept=1, seconds=1, memory=256 * MB)
    async with text_process(trial) as text:
        facts = await text.load(str(tmp_path), chat_template)
        assert facts.template == chat_template
        assert await text.call_on_model(work.size_of_vocabulary, b"") == len(facts.bytes)
