"""Run a client program with a home of its own, as docs/clients.md says, and end what it leaves.

This file needs only the standard library: tests in the environments of other projects import it.
"""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.clients.documented import TASK, Setup
from tests.demo_server import ROOT

INSTALLED = ROOT / "build" / "clients"
TIMEOUT_S = 600.0  # of one run, which takes seconds on an idle machine
END_S = 5.0  # in which the processes of a run have to end after it
# Nothing may leave the machine: where this is not a proxy, the client's own requests fail.
NO_PROXY = {
    **dict.fromkeys(
        ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9"
    ),
    **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost"),
}


@dataclass(frozen=True)
class Program:
    """An installed client and its home folder, in which it also works (`work`).

    Args:
        binaries: the folder with the client's program.
        setup: its files and commands, for the server and model of the test.
        home: an empty folder.
    """

    binaries: Path
    setup: Setup
    home: Path

    @property
    def work(self) -> Path:
        """The folder in which the client runs."""
        return self.home / "work"

    def run(self, task: str = TASK, more: str = "") -> str:
        """Run the client with `task` and return what it prints.

        The test fails if the client fails, takes too long, or leaves processes.

        Args:
            more: options that the command gets before its task, such as the one that continues.
        """
        for path, text in self.setup.files.items():
            (self.home / path).parent.mkdir(parents=True, exist_ok=True)
            (self.home / path).write_text(text, encoding="utf-8")
        self.work.mkdir(exist_ok=True)
        quoted = f'"{TASK}"'
        assert quoted in self.setup.commands
        commands = self.setup.commands.replace(quoted, f'{more} "{task}"')
        with subprocess.Popen(
            ["bash", "-eu", "-c", commands],
            cwd=self.work,
            env=environment_of(self.binaries, self.home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                printed, _ = process.communicate(timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired:
                end_processes(self.home)
                printed, _ = process.communicate()
                pytest.fail(f"{commands}\ntook more than {TIMEOUT_S:g} s:\n{printed}")
        left = end_processes(self.home, END_S)
        assert process.returncode == 0, f"{commands}\n{printed}"
        assert not left, f"{commands}\nleft processes: {left}"
        return printed


def environment_of(binaries: Path, home: Path) -> dict[str, str]:
    """Return the environment of a client, in which only this machine can be reached."""
    return {
        "HOME": str(home),
        "PATH": os.pathsep.join([str(binaries), os.environ["PATH"]]),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        **NO_PROXY,
    }


def end_processes(home: Path, patience: float = 0.0) -> list[str]:
    """Wait for the end of all processes with this home, and kill those that have not ended.

    Returns the command lines of the killed.
    """
    deadline = time.monotonic() + patience
    while (left := _processes(home)) and time.monotonic() < deadline:
        time.sleep(0.1)
    for number in left:
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    return list(left.values())


def _processes(home: Path) -> dict[int, str]:
    """Return the command lines of the processes whose home is `home`, by their numbers."""
    found: dict[int, str] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"HOME={home}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found[int(folder.name)] = (folder / "cmdline").read_bytes().decode(errors="replace")
    return found


def installed(name: str, program: str) -> Path:
    """Return the folder with `program` of the client that is installed under `name`.

    Skip the test if it could not be installed.
    """
    folder = INSTALLED / name
    for binaries in (folder / "node_modules" / ".bin", folder / "bin"):
        if (binaries / program).exists():
            return binaries
    log = folder / "install.log"
    reason = log.read_text(encoding="utf-8")[-500:] if log.exists() else "run make test-clients"
    pytest.skip(f"{program} could not be installed into {folder}: {reason}")
