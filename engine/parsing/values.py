"""Conversion of arguments that models write as raw text to JSON, by the parameters' schemas."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from engine.parsing.json_text import as_json

Schema = Mapping[str, Any]
Kind = str  # the name of a JSON type

MAX_REFERENCES = 32  # that are followed to find the types of one parameter
KINDS = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
WRITTEN_KINDS = {"{": "object", "[": "array", '"': "string", "t": "boolean", "f": "boolean"}
WRITTEN_KINDS["n"] = "null"


def kind_of(value: Any) -> Kind:
    """Return the JSON type of a value, which is "number" for integers too."""
    return KINDS.get(type(value), "number")


def parameter_schema(parameters: Schema, key: str) -> Schema:
    """Return the schema of a parameter; an empty one, which allows anything, if there is none."""
    properties = parameters.get("properties")
    found = properties.get(key) if isinstance(properties, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def kinds_of(schema: Schema, parameters: Schema) -> frozenset[Kind]:
    """Return the JSON types that a parameter may have; an empty set if it may have any.

    "integer" becomes "number".

    Args:
        schema: the schema of the parameter.
        parameters: the schema of all parameters, to which references refer.
    """
    return frozenset(_kinds(schema, parameters, MAX_REFERENCES))


def _kinds(schema: Any, parameters: Schema, budget: int) -> Iterator[Kind]:
    if not isinstance(schema, Mapping) or not budget:
        return
    types = schema.get("type")
    if types is not None:
        for name in [types] if isinstance(types, str) else types:
            yield "number" if name == "integer" else str(name)
    elif "const" in schema:
        yield kind_of(schema["const"])
    elif isinstance(schema.get("enum"), list):
        yield from map(kind_of, schema["enum"])
    elif isinstance(schema.get("$ref"), str):
        yield from _kinds(resolve(schema["$ref"], parameters), parameters, budget - 1)
    else:
        for combiner in ("anyOf", "oneOf", "allOf"):
            for part in schema.get(combiner) or ():
                yield from _kinds(part, parameters, budget - 1)


def resolve(reference: str, parameters: Schema) -> Any:
    """Return the schema that a reference (`#/$defs/Name`) refers to; None if it does not exist."""
    found: Any = parameters
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if reference.startswith("#") else None


def is_text(kinds: frozenset[Kind]) -> bool:
    """Return whether a parameter of these types can only be a string."""
    return kinds == {"string"}


def typed(text: str, kinds: frozenset[Kind]) -> str:
    """Return the JSON of a parameter that is written as raw text.

    The result is a JSON string if only a string is allowed, if the text is not JSON, or if a string
    is allowed and the text is not JSON of another allowed type.
    """
    value = None if is_text(kinds) else as_json(text)
    if value is None and '\\"' in text and kinds and "string" not in kinds:  # escaped once more
        value = as_json(text.replace('\\"', '"').replace("\\\\", "\\"))
    if value is not None:
        kind = WRITTEN_KINDS.get(value[0], "number")
        allows_text = not kinds or "string" in kinds
        if not allows_text or (kind != "string" and (not kinds or kind in kinds)):
            return value
    return json.dumps(text, ensure_ascii=False)
