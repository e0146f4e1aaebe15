"""Tests of how a server ends, as a terminal, a supervisor and its clients see it.

The servers are processes of their own, with an engine process that has no model. Signals go to
their whole process group, as a terminal sends them.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from signal import SIG_IGN, SIGHUP, SIGINT, SIGTERM, getsignal
from typing import Any

import httpx
import pytest

from tests.demo_server import ROOT
from tests.engine.fake_engine import ENDLESS, SLOW

END_S = 30.0


class Running:
    """A server in a process group of its own."""

    def __init__(self, folder: Path, model: str, timeout: float) -> None:
        models = folder / "configs" / "models"
        models.mkdir(parents=True)
        (models / f"{model}.yaml").write_text(f"target: {{source: {folder}}}")
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "UNDERSTUDY_SHUTDOWN_TIMEOUT": str(timeout),
        }
        command = [sys.executable, "-m", "tests.server.serve_fake_child", "serve", model]
        self.process = subprocess.Popen(
            [*command, "--port", "0"],
            cwd=folder,
            env=env,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.printed = ""

    def read_until(self, pattern: str) -> str:
        """Read stderr until a line matches `pattern`, and return the first group of the match."""
        assert self.process.stderr is not None
        while True:
            line = self.process.stderr.readline()
            assert line, f"the server ended: {self.printed}"
            self.printed += line
            if found := re.search(pattern, line):
                return found[1]

    def get_url(self) -> str:
        return self.read_until(r"at (http://127\.0\.0\.1:\d+)/v1")

    def signal(self, number: int) -> None:
        """Send a signal to the whole process group."""
        os.killpg(self.process.pid, number)

    def end(self) -> int:
        """Wait until all processes of the group end, and return the exit code of the server."""
        _, rest = self.process.communicate(timeout=END_S)
        self.printed += rest
        assert "Traceback" not in self.printed
        deadline = time.monotonic() + END_S
        while runs_in_group(self.process.pid):
            assert time.monotonic() < deadline, "a process outlives the server"
            time.sleep(0.01)
        return self.process.returncode


def runs_in_group(group: int) -> bool:
    """Return whether a process group has a process that has not ended, reaped or not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(its_group) == group and state != "Z":
                return True
    return False


@contextlib.contextmanager
def running(folder: Path, model: str = "fake", timeout: float = 60.0) -> Iterator[Running]:
    server = Running(folder, model, timeout)
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)
        server.process.communicate()


@contextlib.contextmanager
def endless_stream(url: str) -> Iterator[Iterator[str]]:
    """Yield the lines of a stream that does not end, without its first line."""
    body = {"prompt": [ENDLESS], "stream": True}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=END_S) as stream:
        lines = stream.iter_lines()
        assert "on" in next(lines)
        yield lines


@pytest.mark.parametrize("number", [SIGINT, SIGTERM, SIGHUP])
def test_an_idle_server_ends_at_once_with_status_0(tmp_path: Path, number: int) -> None:
    if getsignal(number) is SIG_IGN:
        pytest.skip("the tests run under nohup, and so would the server")
    with running(tmp_path) as server:
        server.get_url()
        server.signal(number)
        assert server.end() == 0
        assert "Stopping.\n" in server.printed


@pytest.mark.parametrize("number", [pytest.param(SIGINT, marks=pytest.mark.slow), SIGTERM])
def test_an_endless_stream_gets_an_error_after_the_shutdown_timeout(
    tmp_path: Path, number: int
) -> None:
    with running(tmp_path, timeout=0.5) as server, endless_stream(server.get_url()) as lines:
        server.signal(number)
        errors = [line for line in lines if "error" in line]
        assert "The server is shutting down." in errors[-1]
        assert server.end() == 0
        assert "1 request is running; stopping in at most 0.5 s." in server.printed


@pytest.mark.parametrize("number", [SIGINT, pytest.param(SIGTERM, marks=pytest.mark.slow)])
def test_the_second_signal_ends_everything_at_once(tmp_path: Path, number: int) -> None:
    with running(tmp_path) as server, endless_stream(server.get_url()) as lines:
        server.signal(number)
        server.read_until(r"(1 request is running; stopping in at most 60 s.)")
        assert "on" in next(line for line in lines if line)
        server.signal(number)
        assert server.end() == 128 + number


def test_a_stopping_server_refuses_requests_but_can_be_monitored(
    tmp_path: Path,
) -> None:
    with running(tmp_path) as server, contextlib.ExitStack() as stack:
        url = server.get_url()
        client = stack.enter_context(httpx.Client(base_url=url, timeout=END_S))
        assert client.get("/health").json() == {"status": "ok"}  # its connection stays open
        stack.enter_context(endless_stream(url))
        server.signal(SIGTERM)
        server.read_until(r"(1 request is running)")
        for path, status, words in (
            ("/health", 503, '{"status":"stopping"}'),
            ("/ready", 503, "shutting down"),
            ("/metrics", 200, "understudy_model_loaded"),
            ("/v1/models", 503, "shutting down"),
        ):
            answer = client.get(path)
            assert (answer.status_code, words in answer.text) == (status, True), answer.text
            assert answer.headers["connection"] == "close"
        refused = client.post("/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_closed"
        assert refused.headers["retry-after"]


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(SIGINT, 130, marks=pytest.mark.slow), (SIGTERM, 0)]
)
def test_a_load_can_be_interrupted(tmp_path: Path, number: int, code: int) -> None:
    with running(tmp_path, SLOW) as server:
        server.read_until(r"(loading +0 %)")
        server.signal(number)
        assert server.end() == code
        assert "Stopping; a model was still being loaded.\n" in server.printed
        assert "error" not in server.printed


WAITS = """
import sys, time
from server.cli.signals import EndSignals
with EndSignals():
    while True:
        try:
            print("ready", flush=True)
            time.sleep(60)
        except BaseException as error:
            print("swallowed", error)
"""


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_a_command_ends_even_if_a_library_catches_the_interrupt(number: int) -> None:
    command: Any = [sys.executable, "-c", WAITS]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=END_S)
    assert (process.returncode, out, err) == (128 + number, "", "\nStopped at once.\n")
