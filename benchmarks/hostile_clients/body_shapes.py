"""Hostile bodies: 32 MiB of JSON, and texts that tokenize slowly."""

from collections.abc import Iterator

from benchmarks.hostile_clients.list_shapes import CHAT, HI
from benchmarks.hostile_clients.shapes import Posted, Shape

MILLIONS_OF_BLANKS = 12_000_000
LIST_VALUES = 200_000

# (name, start, unit, end, count): sent as the whole body, and as an unknown field
JSON: tuple[tuple[str, bytes, bytes, bytes, int | None], ...] = (
    ("all [", b"", b"[", b"", None),
    ("nested objects", b"", b'{"a":', b"", None),
    ("nested, closed at 60 levels", b"[", b"[" * 60 + b"]" * 60 + b",", b"0]", None),
    ("all commas", b"", b",", b"", None),
    ("all commas in a list", b"[", b",", b"]", None),
    ("one string", b'"', b"a", b'"', None),
    ("a string without end", b'"', b"a", b"", None),
    ("a string of quotes", b'"', b'\\"', b'"', None),
    ("a string of backslashes", b'"', b"\\\\", b'"', None),
    ("a string of escapes", b'"', b"\\u0000", b'"', None),
    ("a string of half surrogates", b'"', b"\\ud800", b'"', None),
    ("a string of emojis", b'"', "😀".encode(), b'"', None),
    ("bytes that are no UTF-8", b'"', b"\xff", b'"', None),
    ("blanks", b"", b" ", b"{}", None),
    ("a number of 32 million digits", b"", b"1", b"", None),
    ("a fraction of 32 million digits", b"0.", b"1", b"", None),
    ("an exponent of 32 million digits", b"1e", b"0", b"", None),
    ("200,000 numbers", b"[", b"0,", b"0]", LIST_VALUES - 2),
    ("200,001 values", b"[", b'"",', b"null]", LIST_VALUES),
    ("16 million numbers", b"[", b"0,", b"0]", None),
    ("millions of floats", b"[", b"1e9,", b"0]", None),
    ("millions of empty objects", b"[", b"{},", b"0]", None),
    ("millions of empty lists", b"[", b"[],", b"0]", None),
    ("millions of strings", b"[", b'"%d",', b"0]", None),
    ("millions of keys", b"{", b'"%d":0,', b'"a":0}', None),
    ("one key millions of times", b"{", b'"a":0,', b'"a":0}', None),
)

# (name, path, start, end): a body around a text, for each route that reads one
TEXTS: tuple[tuple[str, str, bytes, bytes], ...] = (
    ("/tokenize", "/tokenize", b'{"content":"', b'"}'),
    ("/tokenize with pieces", "/tokenize", b'{"with_pieces":true,"content":"', b'"}'),
    ("/tokenize of a chat", "/tokenize", b'{"messages":[{"role":"user","content":"', b'"}]}'),
    ("completions", "/v1/completions", b'{"max_tokens":1,"prompt":"', b'"}'),
    ("chat", CHAT, b'{"max_tokens":1,"messages":[{"role":"user","content":"', b'"}]}'),
    (
        "messages",
        "/v1/messages",
        b'{"max_tokens":1,"messages":[{"role":"user","content":"',
        b'"}]}',
    ),
    ("responses", "/v1/responses", b'{"max_output_tokens":16,"input":"', b'"}'),
    (
        "count of a chat",
        "/v1/chat/completions/input_tokens",
        b'{"messages":[{"role":"user","content":"',
        b'"}]}',
    ),
    (
        "count of messages",
        "/v1/messages/count_tokens",
        b'{"messages":[{"role":"user","content":"',
        b'"}]}',
    ),
    ("count of a response", "/v1/responses/input_tokens", b'{"input":"', b'"}'),
    ("/apply-template", "/apply-template", b'{"messages":[{"role":"user","content":"', b'"}]}'),
)

# (name, unit, count): texts that tokenize slowly
HARD_TEXTS: tuple[tuple[str, bytes, int | None], ...] = (
    ("12 million blanks", b" ", MILLIONS_OF_BLANKS),
    ("one word of 32 MiB", b"a", None),
    ("32 MiB of words", b"ab ", None),
    ("32 MiB of digits", b"7", None),
    ("32 MiB of punctuation", b"!", None),
    ("32 MiB of line ends", b"\\n", None),
    ("32 MiB of combining marks", "e\u0301".encode(), None),
    ("32 MiB of escapes", b"\\u0000", None),
)
ALL_HARD_TEXTS_FOR = ("/tokenize", "chat")


def _body_shapes() -> Iterator[Shape]:
    for name, start, unit, end, count in JSON:
        yield Posted(f"body: {name}", CHAT, start, unit, end, count)
    for name, start, unit, end, count in JSON:
        yield Posted(f"field: {name}", CHAT, HI + b'"x":' + start, unit, end + b"}", count)
    for door, path, start, end in TEXTS:
        for name, unit, count in HARD_TEXTS:
            if count is not None or door in ALL_HARD_TEXTS_FOR:
                yield Posted(f"text: {name} to {door}", path, start, unit, end, count)


BODY_SHAPES: tuple[Shape, ...] = tuple(_body_shapes())
