"""The terminal output of the command line: log lines, and one line of progress in place.

The server prints here too, so nothing is imported that takes memory, such as `rich`.
"""

import contextlib
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from engine.errors import escaped
from server.cli.stderr_lines import captured_stderr
from server.config.settings import Settings
from server.logs import access
from server.logs.formats import JsonFormat, TextFormat
from server.metrics.load_speed import percent_of, step_figures, step_text
from server.schemas.status import LoadStep

# Between two lines of progress of a step, where a line cannot be overwritten.
LINE_PERCENT, LINE_SECONDS = 10, 5.0
ERROR = "understudy: error: "  # why a command fails follows
BAR = 24  # cells of a bar of progress


class Console:
    """The terminal that the command line writes to. Threads that download may call it.

    Where the log is JSON, everything is a line of it. Errors of a terminal that was closed are
    ignored.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._is_terminal = self._stream.isatty()
        self._is_line_open = False  # the last line is one of progress, without a line end
        self._last = ("", -1, 0.0)  # the step of the last line of progress, its percent and time
        self._json: JsonFormat | None = None  # None: the log is text

    def line(self, text: str, level: int = logging.INFO) -> None:
        """Print a text of one or more lines, in place of an open line of progress."""
        if self._json is not None:
            self._log(level, text)
            return
        self._print(text)

    def error(self, text: object) -> None:
        """Print why the command fails."""
        if self._json is not None:
            self._log(logging.ERROR, str(text))
        else:
            self._print(f"{ERROR}{text}")

    def warning(self, text: str) -> None:
        """Print what the user has probably not meant."""
        if self._json is not None:
            self._log(logging.WARNING, text)
        else:
            self._print(f"understudy: warning: {text}")

    def _print(self, text: str) -> None:
        lead = "\r\x1b[K" if self._is_line_open else ""
        self._is_line_open = False
        shown = "\n".join(map(escaped, text.split("\n")))
        self._write(f"{lead}{shown}\n")

    def progress(self, step: LoadStep) -> None:
        """Show a step of a load: with a bar on a terminal, elsewhere in few lines."""
        if self._json is not None or not self._is_terminal:
            if not self._is_line_due(step, time.monotonic()):
                return
            if self._json is not None:
                self._log(logging.INFO, step_text(step))
            else:
                self._print(f"  {step_text(step)}")
            return
        percent = percent_of(step)
        parts = [escaped(step["what"])]
        if percent is not None:
            filled = BAR * min(percent, 100) // 100
            parts += ["━" * filled + "─" * (BAR - filled), f"{percent:3d} %"]
        text = "  " + "  ".join([*parts, *step_figures(step)])
        columns = shutil.get_terminal_size().columns
        self._write(f"\r\x1b[K{text[: max(1, columns - 1)]}")
        self._is_line_open = True

    def _is_line_due(self, step: LoadStep, now: float) -> bool:
        """Return whether to print a line about a step, and note that it is printed."""
        percent = percent_of(step) or 0
        what, last_percent, at = self._last
        is_new = step["what"] != what
        is_over = percent == 100 and last_percent != 100
        is_later = percent >= last_percent + LINE_PERCENT and now >= at + LINE_SECONDS
        if is_new or is_over or is_later:
            self._last = (step["what"], percent, now)
        return is_new or is_over or is_later

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)
            self._stream.flush()

    @contextlib.contextmanager
    def taking_logs(self, settings: Settings) -> Iterator[Callable[[], None]]:
        """Print the log of this server within this block, and warnings of other packages.

        Yield a function that waits until all that was written to stderr is printed, for a process
        that ends within the block.
        """
        is_json = settings.log_format == "json"
        handler = _LogLines(self._print)
        handler.setFormatter(JsonFormat() if is_json else TextFormat())
        logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
        logging.getLogger("understudy").setLevel(settings.log_level.upper())
        access_level = logging.INFO if settings.access_log else access.OFF
        logging.getLogger(access.LOGGER).setLevel(access_level)
        logging.captureWarnings(True)
        try:
            if is_json:
                with self._printing_json() as drain:
                    yield drain
            else:
                yield lambda: None
        finally:
            logging.captureWarnings(False)

    @contextlib.contextmanager
    def _printing_json(self) -> Iterator[Callable[[], None]]:
        """Print only JSON within this block and after it; yield as `taking_logs`."""
        self._json = JsonFormat()
        before = self._stream
        with captured_stderr(lambda text: self._log(logging.WARNING, text, "stderr")) as lines:
            self._stream = lines.own
            try:
                yield lines.drain
            finally:
                self._stream = before

    def _log(self, level: int, text: str, logger: str = "understudy") -> None:
        """Print a line of the JSON log, whatever the level of the log is."""
        assert self._json is not None, "the log is JSON"
        record = logging.makeLogRecord(
            {
                "name": logger,
                "levelno": level,
                "levelname": logging.getLevelName(level),
                "msg": " ".join(text.split()),
            }
        )
        self._print(self._json.format(record))


class _LogLines(logging.Handler):
    def __init__(self, write: Callable[[str], None]) -> None:
        super().__init__()
        self._write = write

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._write(self.format(record))
        except ValueError:  # the stream is closed, which must not break a request
            self.handleError(record)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the text of a table, whose columns are as wide as their widest cell."""
    shown = [[escaped(cell) for cell in row] for row in [header, *rows]]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in shown
    ]
    return "\n".join(lines)


def records(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return the text of a table for a narrow terminal: each row is a block, a line a cell."""
    width = max(map(len, header[1:]))
    blocks = []
    for first, *others in rows:
        known = [(name, cell) for name, cell in zip(header[1:], others, strict=True) if cell != "-"]
        lines = [f"  {name.lower().ljust(width)}  {escaped(cell)}" for name, cell in known]
        blocks.append("\n".join([escaped(first), *lines]))
    return "\n".join(blocks)


def columns() -> int | None:
    """Return the width of the terminal on stdout; None if it is no terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
