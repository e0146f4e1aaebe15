"""Run `understudy serve` with the demo model in its own process."""

import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]


@contextmanager
def demo_server(python: str, home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
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
