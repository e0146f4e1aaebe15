"""Tests of the two formats of the log: nothing that a client sends can begin or end a line."""

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator

import pytest

from engine.log_lines import OWN, LogLine, of_request, send_logs, write_line
from server.logs.context import create_background_task, current_request
from server.logs.formats import JsonFormat, TextFormat

HOSTILE = 'a\n12:00:00 ERROR forged\r\x1b[2J\x7f\x9b\u2028\u202e\udc80\x00 "} {"level": "error"'
# pytest keeps what is logged, and its processes cannot send each other lone surrogates.
LOGGED = HOSTILE.replace("\udc80", "")


def record(message: str, *args: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("understudy", logging.INFO, __file__, 1, message, args, None)
    made.__dict__.update(extra)
    return made


def failing(text: str) -> logging.LogRecord:
    made = record("it failed")
    try:
        raise ValueError(text)
    except ValueError:
        made.exc_info = sys.exc_info()
    return made


def test_a_text_record_is_one_line_with_its_time_and_request() -> None:
    line = TextFormat().format(record("%s: %d", HOSTILE, 7, request_id="req_1"))
    assert re.match(r"\d\d:\d\d:\d\d INFO req_1: a\\n12:00:00 ERROR forged", line)
    assert line.isprintable()


def test_the_lines_of_a_traceback_are_indented_in_text() -> None:
    first, *below = TextFormat().format(failing(HOSTILE)).split("\n")
    assert first.endswith("INFO it failed")
    assert below and all(line.startswith("    ") and line.isprintable() for line in below)
    assert any("forged" in line for line in below)


def test_a_json_record_is_one_object_on_one_line() -> None:
    fields = {"path": HOSTILE, "status": 200}
    for made in (record("%s", HOSTILE, request_id="req_1", fields=fields), failing(HOSTILE)):
        line = JsonFormat().format(made)
        assert line.isascii() and line.isprintable()
        assert isinstance(json.loads(line), dict)
    values = json.loads(JsonFormat().format(record("hi %s", "there", **of_request("req_1"))))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", values.pop("time"))
    assert values == {
        "level": "info",
        "logger": "understudy",
        "message": "hi there",
        "request_id": "req_1",
    }
    assert "ValueError: a\n12:00" in json.loads(JsonFormat().format(failing(HOSTILE)))["exception"]


@pytest.fixture
def sent() -> Iterator[list[LogLine]]:
    """Yield the lines that this process sends as the engine does, and restore its logging."""
    known = [
        one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)
    ]
    own = [logging.getLogger(name) for name in OWN]
    before = [
        (one, one.handlers[:], one.propagate, one.level) for one in {logging.root, *known, *own}
    ]
    lines: list[LogLine] = []
    send_logs(lines.append)
    yield lines
    logging.captureWarnings(False)
    for logger, handlers, propagate, level in before:
        logger.handlers[:] = handlers
        logger.propagate = propagate
        logger.setLevel(level)


def test_lines_of_another_process_keep_logger_request_and_traceback(sent: list[LogLine]) -> None:
    logging.getLogger("engine.sequences").info("paused %s", LOGGED, extra=of_request("req_1"))
    library = logging.getLogger("some_library")
    library.addHandler(logging.StreamHandler(sys.stderr))
    library.propagate = False
    send_logs(sent.append)
    library.info("of no interest")
    library.warning("look")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("old\n  thing", stacklevel=1)
    first, second, third = sent
    assert (first.name, first.request_id) == ("engine.sequences", "req_1")
    assert first.text.isprintable()
    assert (second.name, second.text) == ("some_library", "look")
    assert third.name == "py.warnings" and "UserWarning: old thing" in third.text
    written: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            written.append(record)

    log = logging.Logger("understudy.engine", logging.INFO)
    log.addHandler(Keep())
    for line in (*sent, LogLine(logging.ERROR, "engine", "bad", trace="Traceback\nValueError")):
        write_line(line, log)
    shown = [json.loads(JsonFormat().format(own)) for own in written]
    assert [own["logger"] for own in shown] == [*(line.name for line in sent), "engine"]
    assert shown[0]["request_id"] == "req_1" and "request_id" not in shown[1]
    assert shown[3]["exception"] == "Traceback\nValueError"
    assert "WARNING [some_library] look" in TextFormat().format(written[1])


async def test_background_work_is_not_taken_for_the_request_that_caused_it() -> None:
    async def request_of_line() -> str:
        return str(json.loads(JsonFormat().format(record("hi"))).get("request_id"))

    current_request.set("req_1")
    assert await request_of_line() == "req_1"
    assert await create_background_task(request_of_line(), "a load") == "None"
