"""Run `understudy serve` in its own process, with the demo model or with others."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[1]
COMPILED = ROOT / "build" / "compiled"  # the names of its folders say which sources they are of

# The process of a server, and the URL of its API.
DemoServer = tuple[subprocess.Popen[str], str]


def demo_server(python: str, home: Path) -> AbstractContextManager[DemoServer]:
    """Start a server with the interpreter `python`; yield its process and the printed URL."""
    return running_server([python, "-m", "server.cli.main", "serve", "demo", "--port", "0"], home)


@contextmanager
def running_server(command: Sequence[str], home: Path) -> Iterator[DemoServer]:
    """Start a server with a home of its own; yield its process and the printed URL.

    Its cache has the compiled code of earlier servers, because compiling takes seconds.
    """
    compiled = home / "cache" / COMPILED.name
    if not compiled.exists():
        COMPILED.mkdir(parents=True, exist_ok=True)
        compiled.parent.mkdir(exist_ok=True)
        compiled.symlink_to(COMPILED)
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_STATE_HOME": str(home / "state"),
        "UNDERSTUDY_CACHE": str(home / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    with subprocess.Popen(
        command, cwd=home, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stderr is not None
        drain = ThreadPoolExecutor(1)
        try:
            url = printed_url(server.stderr)
            drain.submit(server.stderr.read)  # a full pipe would stop the server
            yield server, url
        finally:
            # Every process of the server holds the pipe, and reading it ends with the last of them.
            with suppress(ProcessLookupError):  # they have ended
                os.killpg(server.pid, signal.SIGKILL)
            drain.shutdown()


def printed_url(output: IO[str]) -> str:
    """Return the URL that a starting server prints."""
    printed = ""
    for line in output:
        printed += line
        found = re.search(r"serves .* at (http://127\.0\.0\.1:\d+/v1)", line)
        if found is not None:
            return found[1]
    raise AssertionError(f"the server ended: {printed}")


class SharedDemoServer:
    """One demo server for many tests: started when it is needed and does not run.

    Args:
        stack: ends the server when it is closed.
        make_home: makes a folder for the settings and the cache of a server.
    """

    def __init__(self, stack: ExitStack, make_home: Callable[[], Path]) -> None:
        self._stack = stack
        self._make_home = make_home
        self._running: DemoServer | None = None

    def get(self) -> DemoServer:
        """Return the server, a new one if the one before has ended."""
        if self._running is None or self._running[0].poll() is not None:
            server = demo_server(sys.executable, self._make_home())
            self._running = self._stack.enter_context(server)
        return self._running
