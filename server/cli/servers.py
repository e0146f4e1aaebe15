"""The servers of this user that run on this machine, each with a file that says where.

A server holds a lock on its file while it runs, which the system releases however it ends. A file
without a lock is left over, and is removed.
"""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

POLL_S = 0.05  # between two looks at a server that is about to end


@dataclass(frozen=True)
class RunningServer:
    """A server that runs on this machine."""

    pid: int
    url: str  # without /v1
    machine: str
    certificate: str = ""  # the file with its certificate; "" without TLS


def server_folder(env: Mapping[str, str]) -> Path:
    """Return the folder of the files, which may not exist."""
    state = env.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(state) / "understudy" / "servers"


@contextlib.contextmanager
def announced(url: str, env: Mapping[str, str], certificate: Path | None = None) -> Iterator[None]:
    """List this process among the servers within this block, if its file can be written.

    Args:
        certificate: the file with the server's certificate; None without TLS.
    """
    file_name = "" if certificate is None else str(certificate.resolve())
    server = RunningServer(os.getpid(), url, socket.gethostname(), file_name)
    path = server_folder(env) / f"{server.machine}-{server.pid}.json"
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # a read-only home: the server runs all the same
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            partial = path.with_suffix(".partial")
            file = stack.enter_context(partial.open("w", encoding="utf-8"))
            fcntl.flock(file, fcntl.LOCK_EX)
            json.dump(asdict(server), file)
            file.flush()
            partial.rename(path)  # a file with this name always has its lock
            stack.callback(path.unlink, missing_ok=True)
        yield


def running_servers(env: Mapping[str, str]) -> list[RunningServer]:
    """Return the servers that run, the one that was started last first."""
    found = []
    for path in server_folder(env).glob(f"{socket.gethostname()}-*.json"):
        with contextlib.suppress(OSError, ValueError, TypeError):
            found.append((path.stat().st_mtime, _read(path)))
    return [server for _, server in sorted(found, key=lambda item: item[0], reverse=True) if server]


def _read(path: Path) -> RunningServer | None:
    """Return the server of a file. Remove the file and return None if it is left over."""
    with path.open(encoding="utf-8") as file:
        if not _is_locked(file.fileno()):
            path.unlink(missing_ok=True)
            return None
        return RunningServer(**json.load(file))


def wait_for_end(server: RunningServer, env: Mapping[str, str], timeout: float) -> bool:
    """Wait until a server has ended. Return False if it has not within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while server in running_servers(env):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False
