"""The two formats of the log. In both, no text of a client can begin or end a line.

Text: a record begins at the start of a line, with its time. What of it may have line ends (a
traceback) follows in lines that are indented. JSON: one object on each line, in ASCII.
"""

import json
import logging
from datetime import UTC, datetime

from engine.log_lines import is_own, line_of
from server.logs.context import current_request

INDENT = "    "
RFC_3339 = "%Y-%m-%dT%H:%M:%S.%f"
DELETE = chr(127)  # the one control character that JSON does not escape


class TextFormat(logging.Formatter):
    """Formats a record as `12:34:56 INFO request: message`."""

    def format(self, record: logging.LogRecord) -> str:
        line = line_of(record)
        at = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        request = line.request_id or current_request.get()
        parts = [f"{at} {record.levelname}"]
        if request:
            parts.append(f"{request}:")
        if not is_own(line.name):
            parts.append(f"[{line.name.partition('.')[0]}]")
        below = "".join(f"\n{INDENT}{one}" for one in line.trace.splitlines())
        return " ".join([*parts, line.text]) + below


class JsonFormat(logging.Formatter):
    """Formats a record as a JSON object on one line.

    It has `time` (RFC 3339, UTC), `level`, `logger` and `message`; `request_id` where the line
    concerns a request; `exception` with a traceback; and what `extra` gives as `fields`.
    """

    def format(self, record: logging.LogRecord) -> str:
        line = line_of(record)
        at = datetime.fromtimestamp(record.created, UTC).strftime(RFC_3339)[:-3]
        values: dict[str, object] = {
            "time": f"{at}Z",
            "level": record.levelname.lower(),
            "logger": line.name,
            "message": line.text,
        }
        if request := line.request_id or current_request.get():
            values["request_id"] = request
        values |= getattr(record, "fields", {})
        if line.trace:
            values["exception"] = line.trace
        return json.dumps(values, allow_nan=False).replace(DELETE, "\\u007f")


FORMATS: dict[str, type[logging.Formatter]] = {"text": TextFormat, "json": JsonFormat}
