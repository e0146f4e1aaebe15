"""The search for keywords of a JSON schema whose values have the wrong type. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

_Types = tuple[type, ...]

_SCHEMA: _Types = (Mapping, bool)
# The types that the value of a keyword may have. Keywords that are dropped anyway are not here.
_TYPES: Mapping[str, _Types] = {
    **dict.fromkeys(("properties", "patternProperties", "$defs", "definitions"), (Mapping,)),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems", "required", "enum"), (list,)),
    **dict.fromkeys(("additionalProperties", "additionalItems"), _SCHEMA),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems"), (int, float)),
    **dict.fromkeys(("minProperties", "maxProperties", "multipleOf"), (int, float)),
    **dict.fromkeys(("$ref", "pattern", "format"), (str,)),
    "items": (*_SCHEMA, list),
    "type": (str, list),
}
_TEXTS = ("required", "type")
# Keywords with schemas in their values: in an object, in a list, and the value itself.
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_LISTS = ("allOf", "anyOf", "oneOf", "prefixItems", "items")
_SINGLES = ("additionalProperties", "additionalItems", "items", "if", "then", "else")


def is_typed_keyword(key: str) -> bool:
    """Return whether a keyword must have a value of some types; null means that it is absent."""
    return key in _TYPES


def is_well_formed(schema: Any) -> bool:
    """Return whether the keywords of a schema, and of the schemas inside it, have the right types.

    Another schema is given to the compiler of grammars as it is, which says what is wrong with it.
    """
    if not isinstance(schema, Mapping):
        return isinstance(schema, bool)
    return all(_is_right(key, value) for key, value in schema.items() if value is not None)


def _is_right(key: str, value: Any) -> bool:
    types = _TYPES.get(key)
    if types is not None and not isinstance(value, types):
        return False
    if types is not None and isinstance(value, bool) and bool not in types:  # it is an int too
        return False
    if key in _TEXTS and isinstance(value, list):
        return all(isinstance(text, str) for text in value)
    return all(map(is_well_formed, _schemas_in(key, value)))


def _schemas_in(key: str, value: Any) -> Sequence[Any]:
    """Return the schemas in the value of a keyword."""
    if key in _MAPS and isinstance(value, Mapping):
        return [*value.values()]
    if key in _LISTS and isinstance(value, list):
        return value
    return [value] if key in _SINGLES and isinstance(value, Mapping) else ()
