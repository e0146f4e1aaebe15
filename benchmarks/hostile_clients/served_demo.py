"""Run `understudy serve` with a demo model in its own process, and start it again when it ends."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.hostile_clients.process_memory import ServerMemory
from benchmarks.memory_group import MemoryGroup

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
START_SECONDS = 300.0
STOP_SECONDS = 20.0
ANSWER_SECONDS = 30.0
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
    "UNDERSTUDY_CACHE": str(ROOT / "build" / "benchmarks" / "cache"),
}


@dataclass(frozen=True)
class Address:
    """The process id of a running front end, and its port on loopback."""

    pid: int
    port: int

    def get(self, path: str) -> str:
        """Return the body of an answer with status 200. Raises `OSError` for others."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=ANSWER_SECONDS)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
        except http.client.HTTPException as error:
            raise ConnectionError(f"GET {path}: {error!r}") from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ConnectionError(f"GET {path}: status {answer.status}")
        return text

    def metric(self, name: str) -> float:
        """Return the sum of a metric's series, 0 without series. Raises `OSError`."""
        text = self.get("/metrics")
        return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)))


class ServedDemo:
    """A running server with a demo model. It keeps its port when it is started again.

    Args:
        folder: the place of its logs, and its home folder.
        client_timeout: the server's setting, in seconds.
        model: the id of the model.
        environment: further environment variables.
        group: the memory group of its processes.
    """

    def __init__(
        self,
        folder: Path,
        client_timeout: float,
        *,
        model: str = "demo",
        environment: Mapping[str, str] = MappingProxyType({}),
        group: MemoryGroup | None = None,
    ) -> None:
        self._folder = folder
        self._settings = {"UNDERSTUDY_CLIENT_TIMEOUT": str(client_timeout), **environment}
        self._model = model
        self._group = group
        self._process: subprocess.Popen[bytes] | None = None
        self.address = Address(0, 0)
        self.num_starts = 0
        self._start()

    def ensure_running(self) -> Address:
        """Return the server's address; a server that does not answer is started again."""
        if self._process is None or self._process.poll() is not None or not self._answers():
            self.kill()
            self._start()
        return self.address

    def kill(self) -> None:
        """Kill all processes of the server."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # all have already ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """Shut the server down, or kill it after `STOP_SECONDS`."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_SECONDS)
        self.kill()

    def _answers(self) -> bool:
        try:
            return bool(self.address.get("/health"))
        except OSError:
            return False

    def _start(self) -> None:
        self.num_starts += 1
        log = self._folder / f"server-{self.num_starts}.log"
        command = [sys.executable, "-m", "server.cli.main", "serve", self._model]
        command += ["--port", str(self.address.port)]
        own = {"PYTHONPATH": str(ROOT), "HOME": str(self._folder)}
        start: Any = subprocess.Popen if self._group is None else self._group.start
        with log.open("wb") as output:
            self._process = start(
                command,
                cwd=self._folder,
                env=ENVIRONMENT | os.environ | self._settings | own,
                stdout=output,
                stderr=output,
                start_new_session=True,  # so that `kill` reaches all processes as one group
            )
        assert self._process is not None
        self.address = Address(self._process.pid, self._port(log))
        self.memory = ServerMemory(self._process.pid)

    def _port(self, log: Path) -> int:
        """Wait until the model is loaded; return the port that the server prints."""
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            text = log.read_text(encoding="utf-8", errors="replace")
            if found := re.search(rf"serves {self._model} at http://{re.escape(HOST)}:(\d+)", text):
                return int(found[1])
            time.sleep(0.1)
        self.kill()
        raise ChildProcessError(f"the server did not start:\n{log.read_text(errors='replace')}")


@contextmanager
def served_demo(client_timeout: float) -> Iterator[ServedDemo]:
    """Serve the demo model during a `with` block."""
    with tempfile.TemporaryDirectory(prefix="hostile-clients-") as folder:
        demo = ServedDemo(Path(folder), client_timeout)
        try:
            yield demo
        finally:
            demo.stop()
