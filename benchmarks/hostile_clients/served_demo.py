"""`understudy serve demo` as a process of its own, started again when it dies."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hostile_clients.process_memory import ServerMemory

ROOT = Path(__file__).parents[2]
HOST = "127.0.0.1"
START_SECONDS = 120.0
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
    """A server that runs: its front end's process, and its port on loopback."""

    pid: int
    port: int

    def get(self, path: str) -> str:
        """Return the body of a 200. Raises `OSError`."""
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
        """Return the sum of a metric's series, 0 if it has none. Raises `OSError`."""
        text = self.get("/metrics")
        return sum(map(float, re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE)))


class ServedDemo:
    """The server with the demo model.

    Args:
        folder: where its logs are kept, and what it takes for the home folder.
        client_timeout: the server's setting, in seconds.
    """

    def __init__(self, folder: Path, client_timeout: float) -> None:
        self._folder = folder
        self._settings = {"UNDERSTUDY_CLIENT_TIMEOUT": str(client_timeout)}
        self._process: subprocess.Popen[bytes] | None = None
        self.num_starts = 0
        self._start()

    def running(self) -> Address:
        """Return where it answers; it is started again if it has died."""
        if self._process is None or self._process.poll() is not None or not self._answers():
            self.kill()
            self._start()
        return self.address

    def kill(self) -> None:
        """End its processes at once."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):  # all have ended
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def stop(self) -> None:
        """End it in good order."""
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
        command = [sys.executable, "-m", "server.cli.main", "serve", "demo", "--port", "0"]
        own = {"PYTHONPATH": str(ROOT), "HOME": str(self._folder)}
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=self._folder,
                env=ENVIRONMENT | os.environ | self._settings | own,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a process group of its own, to be ended as one
            )
        self.address = Address(self._process.pid, self._port(log))
        self.memory = ServerMemory(self._process.pid)

    def _port(self, log: Path) -> int:
        """Wait until the model is loaded; return the port that the server prints."""
        assert self._process is not None
        patience = time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < patience:
            text = log.read_text(encoding="utf-8", errors="replace")
            if found := re.search(rf"serves demo at http://{re.escape(HOST)}:(\d+)", text):
                return int(found[1])
            time.sleep(0.1)
        self.kill()
        raise ChildProcessError(f"the server did not start:\n{log.read_text(errors='replace')}")


@contextmanager
def served_demo(client_timeout: float) -> Iterator[ServedDemo]:
    """Serve the demo model until the end of a `with` block."""
    with tempfile.TemporaryDirectory(prefix="hostile-clients-") as folder:
        demo = ServedDemo(Path(folder), client_timeout)
        try:
            yield demo
        finally:
            demo.stop()
