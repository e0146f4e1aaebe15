"""The terminal output of the command line: log lines, and one line of progress in place."""

import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import TextIO

from engine.errors import escaped
from engine.messages import LoadProgress

STEP = 10  # percent between two lines of progress where a line cannot be overwritten


class Console:
    """The terminal that the command line writes to. Threads that download may call it.

    Errors of a terminal that was closed are ignored.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._is_line_open = False  # the last line is one of progress, without a line end
        self._last: tuple[str, int] | None = None

    def line(self, text: str) -> None:
        """Print a text of one or more lines, in place of an open line of progress."""
        lead = "\r\x1b[K" if self._is_line_open else ""
        self._is_line_open = False
        shown = "\n".join(map(escaped, text.split("\n")))
        self._write(f"{lead}{shown}\n")

    def progress(self, step: LoadProgress) -> None:
        """Show a step of a load: in place on a terminal, as a line every ten percent in a file."""
        percent = 100 * step.done // step.total if step.total else 0
        key = (step.what, percent if self._is_terminal else percent - percent % STEP)
        if key == self._last:
            return
        self._last = key
        what = escaped(step.what)
        text = f"  {what} {percent:3d} %" if step.total else f"  {what}"
        if not self._is_terminal:
            self.line(text)
            return
        self._write(f"\r\x1b[K{text}")
        self._is_line_open = True

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    def take_logs(self, level: str) -> None:
        """Print the log of this server from `level` up, and warnings of other packages."""
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
    """Return a number of bytes as text, such as "7.2 GB"."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the text of a table, whose columns are as wide as their widest cell."""
    shown = [[escaped(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]
    return "\n".join(lines)
