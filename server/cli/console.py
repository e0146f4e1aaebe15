"""What the command line shows: log lines, and one line of progress that is written over."""

import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import TextIO

from engine.messages import Progress

STEP = 10  # percent between two lines of progress where nothing can be written over


class Console:
    """Writes to the terminal; safe to call from the threads that download.

    A terminal that is gone breaks nothing.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._rewrites = self._stream.isatty()
        self._open = False  # a line of progress stands there without a line end
        self._last: tuple[str, int] | None = None

    def line(self, text: str) -> None:
        """A line of its own."""
        lead = "\r\x1b[K" if self._open else ""
        self._open = False
        self._write(f"{lead}{text}\n")

    def progress(self, step: Progress) -> None:
        """A step of a load: on a terminal in place, in a file every ten percent."""
        percent = 100 * step.done // step.total if step.total else 0
        key = (step.what, percent if self._rewrites else percent - percent % STEP)
        if key == self._last:
            return
        self._last = key
        text = f"  {step.what} {percent:3d} %" if step.total else f"  {step.what}"
        if not self._rewrites:
            self.line(text)
            return
        self._write(f"\r\x1b[K{text}")
        self._open = True

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def take_logs(self, level: str) -> None:
        """Show the server's log from `level` up, and of other packages what is wrong."""
        handler = _LogLines(self)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))
        logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
        logging.getLogger("understudy").setLevel(level.upper())


class _LogLines(logging.Handler):
    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._console.line(self.format(record))
        except ValueError:  # the stream is closed, which must not break a request
            self.handleError(record)


def size_text(nbytes: int) -> str:
    """Bytes for people: "7.2 GB"."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    return "\n".join(lines)
