"""What tests have a text process run: each in its own way too much, or harmless."""

import os
import signal
import time
from pathlib import Path
from typing import Any

from server.errors import ApiError
from server.text.stages import Stage, doing

kept: list[bytearray] = []


class PanicException(BaseException):
    """As pyo3's, which has no class that could be imported."""


def given(raw: bytes, value: object) -> tuple[int, object]:
    return len(raw), value


def as_bytes(raw: bytes) -> bytes:
    return raw * 2


def process(raw: bytes) -> int:
    return os.getpid()


def host(raw: bytes) -> int:
    return os.getppid()


def open_files(raw: bytes) -> list[str]:
    links = [Path("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd")]
    return [os.readlink(link) for link in links if link.is_symlink()]


def spin(raw: bytes, stage: Stage) -> None:
    with doing(stage):
        while True:
            pass


def hold_the_interpreter(raw: bytes) -> int:
    """One operation of hours, which no Python code can interrupt."""
    return len(str(9 ** (9**9)))


def take_memory(raw: bytes, stage: Stage) -> int:
    with doing(stage):
        return len(bytearray(10**11))


def abort(raw: bytes) -> None:
    """As Rust does when it finds no memory."""
    with doing(Stage.TOKENIZER):
        signal.signal(signal.SIGABRT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGABRT)


def panic(raw: bytes) -> None:
    with doing(Stage.TOKENIZER):
        raise PanicException("retry-limit-in-match over")


def refuse(raw: bytes) -> None:
    raise ApiError("No.", code="because", param="x.y", status=422)


def break_down(raw: bytes) -> float:
    return 1 / len(raw[:0])


def keep_memory(raw: bytes) -> int:
    """Grow by 100 MB; returns the process."""
    kept.append(bytearray(b"x" * 100_000_000))
    return os.getpid()


def die_unless(raw: bytes, path: str) -> str:
    """Be killed from outside, unless the file is there."""
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def die(raw: bytes) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(raw: bytes, path: str) -> int:
    """Write the process's number into the file, and wait until the file is gone."""
    Path(path).write_text(str(os.getpid()))
    while Path(path).exists():
        time.sleep(0.01)
    return os.getpid()


def size_of_vocabulary(tokenizer: Any, raw: bytes) -> int:
    return len(tokenizer.bytes)
