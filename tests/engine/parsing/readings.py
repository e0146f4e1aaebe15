"""What a client sees of an answer that a parser has read."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from engine.parsing.calls import Tools
from engine.parsing.parser import Parser, Piece, merge

TOOLS: dict[str, dict[str, Any]] = {
    "look_up": {
        "type": "object",
        "properties": {
            "key": {"type": "string"},
            "n": {"type": "integer"},
            "f": {"type": "number"},
            "b": {"type": "boolean"},
            "o": {"type": "object", "properties": {"y": {"type": "string"}}},
            "l": {"type": "array", "items": {"type": "string"}},
            "a": {"anyOf": [{"type": "object"}, {"type": "array"}]},
            "z": {"type": "null"},
            "u": {"type": ["string", "null"]},
            "e": {"enum": ["1", 2]},
            "r": {"$ref": "#/$defs/text"},
        },
        "$defs": {"text": {"type": "string"}},
    },
    "now": {},
}


class Read(NamedTuple):
    """An answer as a client sees it."""

    content: str = ""
    calls: tuple[tuple[str, str], ...] = ()
    reasoning: str = ""


def pieces_of(parser: Parser, *texts: str) -> list[Piece]:
    """Return the merged pieces of an answer that arrives in several texts."""
    pieces = [piece for text in texts for piece in parser.feed(text)]
    return merge([*pieces, *parser.finish()])


def read(pieces: Iterable[Piece]) -> Read:
    """Return what a client puts together."""
    content, reasoning = "", ""
    calls: list[tuple[str, str]] = []
    for piece in pieces:
        match piece.kind:
            case "call":
                calls.append((piece.text, ""))
            case "arguments":
                calls[-1] = (calls[-1][0], calls[-1][1] + piece.text)
            case "content":
                content += piece.text
            case "reasoning":
                reasoning += piece.text
    return Read(content, tuple(calls), reasoning)


def tools_of(**schemas: Any) -> Tools:
    """Return tools by name."""
    return schemas
