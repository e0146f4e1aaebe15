"""Servers in front of Ray's replicas for tests, and their processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from tests.demo_server import running_server

COMMAND = [sys.executable, "-m", "server.cli.main"]
SERVE = [*COMMAND, "serve", "demo", "--port", "0"]
CLUSTER = [*COMMAND, "cluster", "serve", "demo", "--port", "0"]
LISTEN = "0A"  # a state in /proc/net/tcp
END_SECONDS, WAIT_SECONDS = 60, 240


@dataclass
class Cluster:
    """A server in front of replicas.

    Args:
        url: of its API.
        home: the folder that all of its processes have as HOME.
    """

    server: subprocess.Popen[str]
    url: str
    home: Path

    def status(self) -> dict[str, Any]:
        """Return its status."""
        found: dict[str, Any] = httpx.get(f"{self.url}/status", timeout=60).json()
        return found

    def peers(self) -> list[dict[str, Any]]:
        """Return the state of each replica."""
        found: list[dict[str, Any]] = self.status()["peers"]
        return found

    def wait_for(self, count: int) -> None:
        """Wait until exactly this many replicas take requests."""

        def are_ready() -> bool:
            states = [peer["state"] for peer in self.peers()]
            return states.count("ready") == count

        wait_until(are_ready, f"{count} replicas")

    def processes(self, start: str) -> list[int]:
        """Return its processes whose command begins with a text, and the text "" for all."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:  # it has ended
                continue
            if command.startswith(start) and f"HOME={self.home}".encode() in environment:
                found.append(int(folder.name))
        return found

    def kill_busiest(self) -> int | None:
        """Kill the replica with the most requests, and return its process; None: all are idle."""
        busy = {own: own_cpu(own) for own in self.processes("ray::ServeReplica")}
        if not busy or not any(peer["running"] for peer in self.peers()):
            return None
        # The name of a replica is in no place that a test can read, but the busiest one has used
        # the most time of its engine lately.
        time.sleep(0.2)
        pid = max(busy, key=lambda own: own_cpu(own) - busy[own])
        os.kill(pid, signal.SIGKILL)
        return pid


def command_of(pid: int) -> bytes:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def pss_of(pid: int) -> int:
    """Return the memory of a process in KiB, with its share of what others have too."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def listening_addresses(pids: set[int]) -> set[str]:
    """Return the addresses at which processes listen, as /proc/net/tcp writes them."""
    sockets = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):  # it was closed meanwhile
                sockets.add(os.readlink(link))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == LISTEN and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].rpartition(":")[0])
    return found


def own_cpu(pid: int) -> float:
    """Return the seconds of processor time that a process and its children have used."""
    total = 0.0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(folder.name) == pid or int(fields[1]) == pid:
            total += int(fields[11]) + int(fields[12])
    return total


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds."""
    for _ in range(WAIT_SECONDS * 5):
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError(f"{what}: waited for too long")


@contextmanager
def cluster(home: Path, *options: str) -> Iterator[Cluster]:
    """Start a server in front of replicas, and end it as a user does."""
    with running_server([*CLUSTER, *options], home) as (server, url):
        try:
            yield Cluster(server, url, home)
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGINT)
                server.wait(END_SECONDS)


def chat(url: str, body: dict[str, Any], path: str = "chat/completions") -> dict[str, Any]:
    """Return the answer to a request."""
    answer = httpx.post(f"{url}/{path}", json=body, timeout=250)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def stream(url: str, body: dict[str, Any]) -> tuple[str, list[float]]:
    """Return the text of a streamed chat, and the times of its chunks."""
    text, times = "", []
    body = body | {"stream": True}
    with httpx.stream("POST", f"{url}/chat/completions", json=body, timeout=250) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert "error" not in chunk, chunk
                for choice in chunk["choices"]:
                    text += choice["delta"].get("content") or ""
                    times.append(time.monotonic())
    return text, times


def longest_pause(times: list[float]) -> float:
    """Return the longest time between two chunks."""
    return max((after - before for before, after in pairwise(times)), default=0.0)


def loaded() -> str:
    """Return the load of the machine, to be printed beside a measurement."""
    return f"at load {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores"
