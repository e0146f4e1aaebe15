"""The check that the keywords of a JSON schema have values of the right types. Pure."""

from collections.abc import Mapping
from typing import Any

_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_SINGLES = frozenset({"items", "additionalProperties"})
_TEXTS = frozenset({"pattern", "format", "$ref"})
_NUMBERS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)


def is_well_formed(schema: Any) -> bool:
    """Return whether a schema and those inside it have keywords with values of the right types."""
    if isinstance(schema, Mapping):
        return all(_fits(key, value) for key, value in schema.items())
    return isinstance(schema, bool)


def _fits(key: str, value: Any) -> bool:
    if key in _MAPS:
        return isinstance(value, Mapping) and all(map(is_well_formed, value.values()))
    if key in _LISTS:
        return isinstance(value, list) and all(map(is_well_formed, value))
    if key in _SINGLES:
        return is_well_formed(value)
    if key == "enum":
        return isinstance(value, list)
    if key == "required" or (key == "type" and not isinstance(value, str)):
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if key in _TEXTS:
        return isinstance(value, str)
    return key not in _NUMBERS or (isinstance(value, int | float) and not isinstance(value, bool))
