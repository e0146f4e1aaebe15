"""The log of the engine process, sent to the front end, whose settings say what is printed."""

import logging
from collections.abc import Callable

from engine.messages import LogLine
from engine.printable_logs import PrintableFormatter

ENGINE = "engine"  # the logger above those of all modules of the engine


class PipeHandler(logging.Handler):
    """A handler that sends each record as a `LogLine`."""

    def __init__(self, send: Callable[[LogLine], None]) -> None:
        super().__init__()
        self._send = send
        self.setFormatter(PrintableFormatter("%(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self._send(LogLine(record.levelno, self.format(record)))


def send_logs(send: Callable[[LogLine], None]) -> None:
    """Send the log lines of the engine's modules with `send`, instead of writing them to stderr."""
    logger = logging.getLogger(ENGINE)
    logger.addHandler(PipeHandler(send))
    logger.setLevel(logging.DEBUG)
