"""Run `understudy serve` with the demo model in its own process."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The process of a server, and the URL of its API.
DemoServer = tuple[subprocess.Popen[str], str]


@contextmanager
def demo_server(python: str, home: Path) -> Iterator[DemoServer]:
    """Start a server with the interpreter `python`; yield its process and the printed URL."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "UNDERSTUDY_CACHE": str(home / "cache"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [python, "-m", "server.cli.main", "serve", "demo", "--port", "0"]
    with subprocess.Popen(command, cwd=home, env=env, stderr=subprocess.PIPE, text=True) as server:
        assert server.stderr is not None
        printed = ""
        found = None
        while found is None:
            line = server.stderr.readline()
            assert line, f"the server ended: {printed}"
            printed += line
            found = re.search(r"serves demo at (http://127\.0\.0\.1:\d+/v1)", line)
        drain = ThreadPoolExecutor(1)
        drain.submit(server.stderr.read)  # a full pipe would stop the server
        yield server, found[1]
        server.kill()
        drain.shutdown()


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
