"""Lines that other code writes to stderr, turned into records of the log.

Libraries in C and Rust, the interpreter and processes that crash write there without any logger.
Where the log is read by programs, their lines would break its format.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import TextIO

STDERR = 2
LONGEST_LINE = 8000  # bytes; a longer one is divided
DRAIN_S = 1.0
_MARK = b"\0understudy: all that was written before this is read\0"


class StderrLines:
    """The lines written to stderr by this process and those that it starts.

    Args:
        own: what stderr was before, for the log itself.
    """

    def __init__(self, own: TextIO) -> None:
        self.own = own
        self._drained = threading.Event()

    def read(self, source: int, write: Callable[[str], None]) -> None:
        """Call `write` with each line that is read from the file descriptor `source`."""
        rest = b""
        while piece := os.read(source, 1 << 16):
            if _MARK in (rest := rest + piece):
                rest = rest.replace(_MARK, b"")
                self._drained.set()
            *lines, rest = rest.replace(b"\r", b"\n").split(b"\n")
            while len(rest) > LONGEST_LINE:
                lines.append(rest[:LONGEST_LINE])
                rest = rest[LONGEST_LINE:]
            for line in lines:
                if text := line.decode(errors="backslashreplace").rstrip():
                    write(text)

    def drain(self) -> None:
        """Wait until what was written so far is read, for a second at most."""
        self._drained.clear()
        os.write(STDERR, _MARK + b"\n")
        self._drained.wait(DRAIN_S)


@contextlib.contextmanager
def captured_stderr(write: Callable[[str], None]) -> Iterator[StderrLines]:
    """Call `write`, in a thread, with each line written to stderr within this block."""
    saved = os.dup(STDERR)
    source, target = os.pipe()
    os.dup2(target, STDERR)
    os.close(target)
    lines = StderrLines(os.fdopen(saved, "w", encoding="utf-8", closefd=False))
    # A daemon: the processes that were started may hold the pipe open.
    threading.Thread(target=lines.read, args=(source, write), daemon=True).start()
    try:
        yield lines
    finally:
        lines.drain()
        os.dup2(saved, STDERR)
