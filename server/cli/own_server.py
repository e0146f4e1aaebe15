"""The server of `understudy chat`: one that runs, or one that is started for the chat."""

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import IO

from rich.console import Console

from server.cli.console import ERROR
from server.cli.control import state_text
from server.cli.paint import shown_text
from server.cli.remote import Remote, RemoteError, Unreachable, choose_url, connect_to
from server.cli.servers import running_servers
from server.config.environment import ENV_URL

POLL_S = 0.2
END_S = 30.0  # for the end of the server that was started
LONGEST_REASON = 2000  # characters of a failed server's output that are shown


@contextlib.contextmanager
def server_for(
    args: argparse.Namespace, env: Mapping[str, str], screen: Console
) -> Iterator[tuple[str, str | None]]:
    """Yield the URL of a server, and the name of the model to use there; None for its default.

    It is the server that is named or runs, else one that is started for the model, and ended after
    the block.
    """
    named = args.url or env.get(ENV_URL)
    if named or running_servers(env):
        yield choose_url(named, env), args.model
        return
    with _started(args, env, screen) as url:
        yield url, None


@contextlib.contextmanager
def _started(args: argparse.Namespace, env: Mapping[str, str], screen: Console) -> Iterator[str]:
    """Start a server on a free port, wait until its model is loaded, and end it after the block."""
    model = [] if args.model is None else [args.model]
    options = ["--port", "0", "--log-format", "text"]
    command = [sys.executable, "-m", "server.cli.main", "serve", *model, *options]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8") as output,
        # In a session of its own, Ctrl-C in this terminal does not reach it.
        subprocess.Popen(command, stderr=output, start_new_session=True) as server,
    ):
        try:
            yield _wait_until_loaded(server, args, env, output, screen)
        finally:
            server.terminate()
            try:
                server.wait(END_S)
            except subprocess.TimeoutExpired:
                server.kill()


def _wait_until_loaded(
    server: "subprocess.Popen[bytes]",
    args: argparse.Namespace,
    env: Mapping[str, str],
    output: IO[str],
    screen: Console,
) -> str:
    """Return the URL of a server that has loaded its model. Raise `RemoteError` if it ends."""
    with screen.status("starting a server") as spinner:
        while server.poll() is None:
            url = next((own.url for own in running_servers(env) if own.pid == server.pid), None)
            if url is not None:
                with connect_to(url, args, env) as remote:
                    state = _load_state(remote)
                if state is None:
                    return url
                spinner.update(state)
            time.sleep(POLL_S)
    output.seek(0)
    log, mark, error = output.read().rpartition(ERROR)
    reason = error.strip() if mark else log[-LONGEST_REASON:].strip()
    raise RemoteError(f"the server could not be started: {reason}")


def _load_state(remote: Remote) -> str | None:
    """Return what is waited for, None once the default model is loaded."""
    try:
        model = next(model for model in remote.status()["models"] if model["default"])
    except Unreachable:
        return "starting a server"  # it does not accept connections yet
    if model["state"] == "loaded":
        return None
    return shown_text(f"{model['id']}: {state_text(model)}")
