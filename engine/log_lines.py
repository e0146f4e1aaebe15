"""The log lines of other processes, sent to the front end, whose settings say what is printed."""

import logging
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import escaped, printable

LONGEST_TEXT = 8000  # characters of a line, and of the traceback below it
OWN = ("engine", "server", "understudy")  # the loggers of this project
WARNINGS = "py.warnings"  # the logger of `logging.captureWarnings`


@dataclass(frozen=True)
class LogLine:
    """A line of the log of another process, printable but for the line ends of `trace`.

    Args:
        level: as in `logging`.
        name: of the logger.
        request_id: of the HTTP request that the line concerns; "" for none.
        trace: the traceback of an exception; "" for none.
    """

    level: int
    name: str
    text: str
    request_id: str = ""
    trace: str = ""


def line_of(record: logging.LogRecord) -> LogLine:
    """Return the line of a record."""
    text = record.getMessage().rstrip("\n")  # those of uvicorn end with one
    if record.name == WARNINGS:  # file, line and message, and the source text in lines of its own
        text = " ".join(text.split())
    text = text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
    trace: str = getattr(record, "trace", "")
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        trace = "".join(traceback.format_exception(error)).rstrip("\n")
    return LogLine(
        record.levelno,
        getattr(record, "origin", record.name),
        escaped(text),
        getattr(record, "request_id", ""),
        printable(trace, LONGEST_TEXT),
    )


def of_request(request_id: str) -> dict[str, Any]:
    """Return the argument `extra` of a log call about one HTTP request."""
    return {"request_id": request_id} if request_id else {}


def is_own(name: str) -> bool:
    """Return whether a logger is one of this project, and not of a library."""
    return name.partition(".")[0] in OWN


class LineHandler(logging.Handler):
    """A handler that sends each record as a `LogLine`: of libraries warnings and errors only."""

    def __init__(self, send: Callable[[LogLine], None]) -> None:
        super().__init__()
        self._send = send

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING or is_own(record.name):
            self._send(line_of(record))


def send_logs(send: Callable[[LogLine], None]) -> None:
    """Send the log lines and warnings of this process with `send`, instead of writing them.

    Call `adopt_libraries` when the libraries have been imported.
    """
    root = logging.getLogger()
    root.handlers[:] = [LineHandler(send)]
    for name in OWN:
        logging.getLogger(name).setLevel(logging.DEBUG)
    logging.captureWarnings(True)
    adopt_libraries()


def adopt_libraries() -> None:
    """Let the lines of libraries reach the root's handler, instead of handlers of their own."""
    streams = (sys.stderr, sys.stdout, sys.__stderr__, sys.__stdout__)
    for logger in list(logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            for handler in list(logger.handlers):
                if isinstance(handler, logging.StreamHandler) and handler.stream in streams:
                    logger.removeHandler(handler)
                    logger.propagate = True


def write_line(line: LogLine, log: logging.Logger) -> None:
    """Write a line of another process into the log of this one, with the level of `log`."""
    extra = {"origin": line.name, "trace": line.trace, **of_request(line.request_id)}
    log.log(line.level, "%s", line.text, extra=extra)
