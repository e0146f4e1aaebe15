"""Log lines that are safe to print, whatever text of a file is in them."""

import logging
from collections.abc import Iterable

from engine.errors import printable

LONGEST_LINE = 8000  # characters; a traceback is one record


class PrintableFormatter(logging.Formatter):
    """Formats as its base does, with what a terminal might obey escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), LONGEST_LINE)


def make_printable(handlers: Iterable[logging.Handler | None], line: str) -> None:
    """Let these handlers write printable lines in the format `line`."""
    for handler in handlers:
        if handler is not None:
            handler.setFormatter(PrintableFormatter(line))
