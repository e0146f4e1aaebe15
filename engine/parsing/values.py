"""Conversion of arguments that models write as raw text to JSON, by the parameters' schemas."""

import json
from collections.abc import Mapping
from typing import Any

from engine.parsing.json_text import as_json

Schema = Mapping[str, Any]
Kind = str  # the name of a JSON type

MAX_SCHEMAS = 1000  # that are searched for the types of one parameter
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

    "integer" becomes "number". If more than `MAX_SCHEMAS` schemas say what it may be, it is any.

    Args:
        schema: the schema of the parameter.
        parameters: the schema of all parameters, to which references refer.
    """
    kinds: set[Kind] = set()
    seen: set[int] = set()  # a schema may refer to itself, many times over
    waiting: list[Any] = [schema]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, Mapping) or id(part) in seen:
            continue
        seen.add(id(part))
        if len(seen) > MAX_SCHEMAS:
            return frozenset()
        types = part.get("type")
        if types is not None:
            named = types if isinstance(types, list) else [types]
            kinds.update("number" if name == "integer" else str(name) for name in named)
        elif "const" in part:
            kinds.add(kind_of(part["const"]))
        elif isinstance(part.get("enum"), list):
            kinds.update(map(kind_of, part["enum"]))
        elif isinstance(part.get("$ref"), str):
            waiting.append(resolve(part["$ref"], parameters))
        else:
            for combiner in ("anyOf", "oneOf", "allOf"):
                parts = part.get(combiner)
                waiting += parts if isinstance(parts, list) else []
    return frozenset(kinds)


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
