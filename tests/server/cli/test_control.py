"""`understudy ps`, `stop` and `top`, and how they find a server."""

import json
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from server.cli import main
from server.cli.control import _listing
from server.cli.keys import leaving_by_q
from server.cli.remote import Remote, RemoteError, choose_url
from server.cli.servers import announced, running_servers, server_folder
from server.cli.top import view
from server.schemas.status import ServerStatus
from tests.server.cli.serving import served
from tests.server.conftest import MakeApp
from tests.server.fake_engine import FakeEngines
from tests.server.metrics.test_prometheus import PASS

Capture = pytest.CaptureFixture[str]
ANNOUNCE = """
import os, sys
from server.cli.servers import announced
with announced("http://127.0.0.1:1", os.environ):
    print("up", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Hide the real servers and keys of the user."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    for name in ("UNDERSTUDY_URL", "UNDERSTUDY_API_KEY", "UNDERSTUDY_PORT"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture
def other_server() -> Iterator[subprocess.Popen[str]]:
    """Start a process that says that it is a server."""
    command = [sys.executable, "-c", ANNOUNCE]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        yield process
        process.kill()


def loaded(url: str) -> ServerStatus:
    """Load a model, and return the status."""
    with Remote(url, "") as remote:
        remote.load("main")
        return remote.status()


def test_servers_are_listed_while_they_run(
    state: Path, other_server: subprocess.Popen[str]
) -> None:
    assert [server.pid for server in running_servers(os.environ)] == [other_server.pid]
    with announced("http://127.0.0.1:2", os.environ):
        urls = {server.url for server in running_servers(os.environ)}
        assert urls == {"http://127.0.0.1:1", "http://127.0.0.1:2"}
        with pytest.raises(RemoteError, match="several servers run"):
            choose_url(None, os.environ)
    other_server.kill()  # its file is left
    other_server.wait()
    assert list(server_folder(os.environ).iterdir())
    assert running_servers(os.environ) == []
    assert list(server_folder(os.environ).iterdir()) == []


def test_a_server_without_a_writable_home_runs(state: Path) -> None:
    (state / "understudy").touch()
    with announced("http://127.0.0.1:2", os.environ):
        assert running_servers(os.environ) == []


@pytest.mark.parametrize(
    ("asked", "env", "want"),
    [
        (None, {}, "http://127.0.0.1:8000"),
        (None, {"UNDERSTUDY_PORT": "81"}, "http://127.0.0.1:81"),
        (None, {"UNDERSTUDY_PORT": "tcp://10.0.0.1:80"}, "http://127.0.0.1:8000"),  # Kubernetes
        (None, {"UNDERSTUDY_URL": "http://a"}, "http://a"),
        ("http://b", {"UNDERSTUDY_URL": "http://a"}, "http://b"),
    ],
)
def test_the_server_is_the_named_one_or_that_of_the_usual_port(
    state: Path, asked: str | None, env: dict[str, str], want: str
) -> None:
    assert choose_url(asked, {**env, "XDG_STATE_HOME": str(state)}) == want


def test_ps_lists_models_in_memory_and_stop_unloads_them(
    url: str, capsys: Capture, engines: FakeEngines
) -> None:
    assert main.main(["ps", "--url", url]) == 0
    assert "No model is loaded" in capsys.readouterr().out
    loaded(url)
    engines.engine.on_pass(PASS)
    assert main.main(["ps", "--url", f"{url}/v1/"]) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["MODEL", "STATE", "CONTEXT"]
    assert row.startswith("main   loaded  1024     3 resident, 5 ram") and row.endswith(url)
    assert main.main(["ps", "--url", url, "--all"]) == 0
    assert "org/other" in capsys.readouterr().out
    assert main.main(["ps", "--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[url]["engine"]["model"] == "main"
    assert main.main(["stop", "--url", url, "--grace", "0"]) == 0
    assert "main is unloaded" in capsys.readouterr().err
    assert main.main(["stop", "--url", url]) == 0
    assert "No model is loaded" in capsys.readouterr().err
    assert engines.engine.state == "closed"


def test_ps_lists_the_other_servers_where_one_fails(
    url: str, other_server: subprocess.Popen[str], capsys: Capture
) -> None:
    with announced(url, os.environ):
        assert main.main(["ps", "--all"]) == 1
    shown = capsys.readouterr()
    assert "org/other" in shown.out and "no server answers at http://127.0.0.1:1." in shown.err


def test_the_errors_of_a_server_are_shown(url: str, capsys: Capture) -> None:
    assert main.main(["stop", "nothing", "--url", url]) == 1
    assert "The model 'nothing' does not exist" in capsys.readouterr().err


def test_a_missing_key_is_named(make_app: MakeApp, capsys: Capture) -> None:
    with served(make_app(keys=("secret",))) as url:
        assert main.main(["ps", "--url", url]) == 1
        assert "UNDERSTUDY_API_KEY" in capsys.readouterr().err
        assert main.main(["ps", "--url", url, "--api-key", "secret"]) == 0


@pytest.mark.parametrize("command", ["ps", "top", "stop"])
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "nonsense", "http://[", "ftp://a"])
def test_a_server_that_does_not_answer_is_named(command: str, url: str, capsys: Capture) -> None:
    assert main.main([command, "--url", url]) == 1
    error = capsys.readouterr().err
    assert url in error and "Traceback" not in error


def test_an_answer_of_another_program_is_an_error() -> None:
    answers = httpx.MockTransport(lambda request: httpx.Response(404, text="<html>"))
    with (
        Remote("http://a", "", answers) as remote,
        pytest.raises(RemoteError, match="is it an Understudy"),
    ):
        remote.status()


def test_an_answer_that_ends_too_early_is_an_error() -> None:
    chunk = 'data: {"choices": []}\n\n'
    answers = httpx.MockTransport(lambda request: httpx.Response(200, text=chunk))
    with (
        Remote("http://a", "", answers) as remote,
        pytest.raises(RemoteError, match="cut the answer off"),
    ):
        list(remote.chat({}))


def test_stop_ends_a_server_of_this_machine_only(
    url: str, other_server: subprocess.Popen[str], capsys: Capture
) -> None:
    assert main.main(["stop", "--server", "--url", url]) == 1
    assert "where it was started" in capsys.readouterr().err
    assert main.main(["stop", "main", "--server"]) == 1
    assert other_server.poll() is None
    assert main.main(["stop", "--server"]) == 0
    assert other_server.wait() == -15
    assert "http://127.0.0.1:1 has ended" in capsys.readouterr().err


def test_top_shows_every_figure_once(url: str, capsys: Capture, engines: FakeEngines) -> None:
    loaded(url)
    engines.engine.on_pass(PASS)
    assert main.main(["top", "--url", url]) == 0
    out = capsys.readouterr().out
    for words in ("main", "loaded", "3 resident, 5 ram", "tokens a pass", "2.50", "of 12.50 GB/s"):
        assert words in out, words
    for words in ("waits for weights", "waits for the draft", "waits for the host", "of 100"):
        assert words in out, words


@pytest.mark.parametrize("width", [40, 80, 200])
def test_top_fits_the_terminal_and_escapes_names(width: int, url: str) -> None:
    status = loaded(url)
    status["models"][0]["id"] = "[bold]a\x1b[2J"
    screen = Console(width=width, record=True, file=StringIO())
    screen.print(view(status, url, width))
    text = screen.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text and "[bold]" in text
    assert "waits for the draft" in text, "names are not cut"


@pytest.mark.parametrize(("width", "lines"), [(None, 2), (120, 2), (40, 5)])
def test_the_list_of_models_fits_the_terminal(width: int | None, lines: int) -> None:
    row = ("a-model", "loaded", "2048", "1 resident, 6 ram", "subspec", "-", "-", "http://a")
    text = _listing([row], width=width, has_servers=False)
    assert ("http://a" in text) is (width is None), "one server needs no column"
    assert len(text.splitlines()) == lines
    assert max(map(len, text.splitlines())) <= (width or 200)


def test_a_watch_ends_with_the_server(make_app: MakeApp) -> None:
    app = make_app()
    seen = []
    with served(app) as url, Remote(url, "") as remote:
        for status in remote.watch():
            seen.append(status["state"])
            app.shared.in_flight.stop()
    assert seen[0] == "running" and seen[-1] == "stopping"


def test_q_ends_what_is_shown_and_restores_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    keyboard, terminal = pty.openpty()
    with open(terminal) as stdin, open(keyboard, "wb", buffering=0) as keys:
        monkeypatch.setattr("sys.stdin", stdin)
        before = termios.tcgetattr(terminal)
        # Where the tests run in the background, SIGINT is ignored.
        interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)

        def press() -> None:
            with leaving_by_q():
                assert termios.tcgetattr(terminal) != before
                keys.write(b"xq")
                threading.Event().wait(60)

        try:
            with pytest.raises(KeyboardInterrupt):
                press()
        finally:
            signal.signal(signal.SIGINT, interrupt)
        assert termios.tcgetattr(terminal) == before
