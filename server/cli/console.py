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
        """Print a text of its own, of one or more lines."""
        lead = "\r\x1b[K" if self._open else ""
        self._open = False
        shown = "\n".join(map(printable, text.split("\n")))
        self._write(f"{lead}{shown}\n")

    def progress(self, step: Progress) -> None:
        """A step of a load: on a terminal in place, in a file every ten percent."""
        percent = 100 * step.done // step.total if step.total else 0
        key = (step.what, percent if self._rewrites else percent - percent % STEP)
        if key == self._last:
            return
        self._last = key
        what = printable(step.what)
        text = f"  {what} {percent:3d} %" if step.total else f"  {what}"
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


def printable(text: str) -> str:
    """Return a text with every character escaped that a terminal does not just show.

    Names of files and models come from outside: control characters in them could rewrite the
    screen, and marks of writing direction could show another name.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size_text(nbytes: int) -> str:
    """Bytes for people: "7.2 GB"."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return columns as wide as their widest cell."""
    shown = [[printable(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]
    return "\n".join(lines)
