"""The preparation of JSON schemas for grammars: close objects and drop inexpressible keywords.

A closed object takes no other keys than those in its `properties`. llguidance reads a schema
without `additionalProperties` as one that allows every key, and weak models then invent keys. So
objects with `properties` are closed, unless the schema says otherwise. Several parts of a schema
may describe one object together: `allOf`, the target of `$ref`, and the keywords next to them. The
object is closed as a whole, never inside a part: two closed parts would exclude each other's keys.

The functions are pure and never change a schema in place.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

Schema = Mapping[str, Any]

# Keywords that grammars cannot express. Without `strict` they are dropped, and a header of the
# answer names them.
DROPPED = frozenset(
    {
        *("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"),
        *("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies"),
        *("propertyNames", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"),
    }
)
# Keywords that have a meaning only next to another dropped one, so the header does not name them.
_COMPANIONS = frozenset({"then", "else", "minContains", "maxContains"})
FORMATS = frozenset(
    {
        *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"),
        *("uri", "unknown"),
    }
)
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("if", "then", "else")  # dropped, but their property names count as the object's
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLES = ("additionalProperties", "items", "additionalItems")
_LISTS = ("prefixItems", "items")
_PATTERNS = "patternProperties"
_VALUES = frozenset({"const", "default"})  # keywords for which null is a value like others
# Look-around and back-references, which regular expressions in grammars do not support.
_LOOK_AROUND = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?:<?[=!])|\\[1-9]|\\k<)")
# Keywords that describe an object together with the branches of `anyOf` or `oneOf` next to them.
_JOINING = frozenset(
    {
        *("properties", "patternProperties", "required", "additionalProperties", "propertyNames"),
        *("minProperties", "maxProperties", "unevaluatedProperties", "allOf", "$ref"),
    }
)


class _Role(Enum):
    """The role of a schema for the object that it describes: all of it, or one of several parts.

    A part is never closed by itself. If a part that the client closed excludes keys that another
    part requires, nothing would match. Then the parts are lifted: they lose their
    `additionalProperties: false`, and the object that they describe together is closed instead.
    """

    WHOLE = "whole"
    PART = "part"
    LIFTED = "lifted"


@dataclass
class _Object:
    """An object as all parts of a schema describe it together."""

    names: set[str] = field(default_factory=set)  # the keys in `properties`
    has_properties: bool = False  # whether a part has `properties`, which may be empty
    required: set[str] = field(default_factory=set)
    has_word: bool = False  # whether a part has a keyword about further keys
    has_conflict: bool = False  # whether a closed part excludes a key that another one requires
    is_closed: bool = False  # by `unevaluatedProperties: false`, which applies to all parts
    fewest: int = 0  # the largest `minProperties`


def prepared_schema(schema: Schema, *, is_strict: bool) -> tuple[dict[str, Any], list[str]]:
    """Return a schema that is ready for a grammar, and the names of the dropped keywords.

    With `is_strict`, only keywords that exclude nothing are dropped. The others stay, and the
    grammar's compiler raises an error for them.
    """
    preparation = _Preparation(schema, is_strict=is_strict)
    prepared = preparation.run()
    return prepared, preparation.dropped


class _Preparation:
    """The preparation of one schema, with the dropped keywords and the copies made so far."""

    def __init__(self, root: Schema, *, is_strict: bool) -> None:
        self._root = root
        self._is_strict = is_strict
        self._open_copies: dict[str, Any] = {}  # targets of `$ref`, not closed, by name in `$defs`
        self.dropped: list[str] = []

    def run(self) -> dict[str, Any]:
        """Return the prepared schema, with the copies that its references need."""
        prepared = self._schema(self._root, _Role.WHOLE)
        if not isinstance(prepared, dict):  # it is `false`, which matches no value
            return {"not": {}}
        if self._open_copies:
            prepared["$defs"] = {**prepared.get("$defs", {}), **self._open_copies}
        return prepared

    def _schema(self, schema: Any, role: _Role) -> Any:
        """Return the prepared form of a schema that has this role."""
        if not isinstance(schema, Mapping):
            return schema
        if schema.get("not") in ({}, True):
            return False
        whole = None
        if role is _Role.WHOLE and not _is_alone(schema):
            whole = self._object(schema)
            role = _Role.LIFTED if whole.has_conflict else _Role.PART
        made = {}
        for key, value in schema.items():
            if self._keeps(key, value, schema):
                made[key] = self._value(key, value, role)
        ref = schema.get("$ref")
        if isinstance(ref, str) and role is not _Role.WHOLE:
            made["$ref"] = self._open_copy(ref, role)
        if role is _Role.LIFTED and made.get("additionalProperties") is False:
            del made["additionalProperties"]
        if whole is not None:
            _close(whole, made)
        return made

    def _value(self, key: str, value: Any, role: _Role) -> Any:
        """Return the value of one keyword, with the schemas inside it prepared."""
        if key in _IN_PLACE_LISTS and isinstance(value, list):
            return [self._schema(inner, role) for inner in value]
        if key in _MAPS and isinstance(value, Mapping):
            inner = {name: self._schema(one, _Role.WHOLE) for name, one in value.items()}
            return {k: v for k, v in inner.items() if key != _PATTERNS or self._keeps_pattern(k)}
        if key in _LISTS and isinstance(value, list):
            return [self._schema(one, _Role.WHOLE) for one in value]
        return self._schema(value, _Role.WHOLE) if key in _SINGLES else value

    def _keeps(self, key: str, value: Any, schema: Schema) -> bool:
        """Return whether a keyword of `schema` stays in the prepared schema.

        A dropped keyword is added to `dropped` if it restricted the values.
        """
        if value is None and key not in _VALUES:
            return False  # some clients write null for an absent keyword
        if key == "pattern":
            return not isinstance(value, str) or self._keeps_pattern(value, key)
        if key in ("minProperties", "maxProperties"):
            is_known = _properties(schema).keys() <= set(_texts(schema.get("required")))
            return is_known or self._is_strict or self._drop(key)
        if key == "format":
            return isinstance(value, str) and value in FORMATS
        if key == "$schema":
            return isinstance(value, str) and "json-schema.org/" in value
        if key not in DROPPED or _says_nothing(key, value):
            return key not in DROPPED
        if key == "unevaluatedProperties" and isinstance(value, bool):
            return False  # its effect is kept: `_close` closes or opens the object by it
        return self._is_strict or self._drop(key)

    def _keeps_pattern(self, pattern: str, key: str = _PATTERNS) -> bool:
        return self._is_strict or _LOOK_AROUND.search(pattern) is None or self._drop(key)

    def _drop(self, key: str) -> Literal[False]:
        """Add a keyword to `dropped`, and return False for the caller to return."""
        if key not in _COMPANIONS and key not in self.dropped:
            self.dropped.append(key)
        return False

    def _object(self, schema: Schema) -> _Object:
        """Return the object that the parts of a schema describe together."""
        whole = _Object()
        parts = list(self._parts(schema, set()))
        for part in parts:
            whole.names.update(_properties(part))
            whole.has_properties |= isinstance(part.get("properties"), Mapping)
            whole.required.update(_texts(part.get("required")))
            whole.has_word |= not {"additionalProperties", "propertyNames"}.isdisjoint(
                key for key in part if not _says_nothing(key, part[key])
            )
            whole.has_word |= part.get("unevaluatedProperties", False) is not False
            whole.is_closed |= part.get("unevaluatedProperties") is False
            fewest = part.get("minProperties", 0)
            whole.fewest = max(whole.fewest, fewest if isinstance(fewest, int) else 0)
        whole.has_conflict = whole.required <= whole.names and any(
            part.get("additionalProperties") is False
            and _PATTERNS not in part
            and not whole.required <= _properties(part).keys()
            for part in parts
        )
        return whole

    def _parts(self, schema: Any, seen: set[str]) -> Iterator[Schema]:
        """Yield the schemas that describe one object together: `schema` and its parts.

        `seen` has the references that were followed already, and prevents endless recursion.
        """
        if not isinstance(schema, Mapping):
            return
        yield schema
        inner: list[Any] = [schema[key] for key in _IN_PLACE if key in schema]
        for key in _IN_PLACE_LISTS:
            if isinstance(schema.get(key), list):
                inner += schema[key]
        dependent = schema.get("dependentSchemas")
        inner += dependent.values() if isinstance(dependent, Mapping) else ()
        ref = schema.get("$ref")
        if isinstance(ref, str) and ref not in seen:
            seen.add(ref)
            inner.append(self._target(ref))
        for part in inner:
            yield from self._parts(part, seen)

    def _open_copy(self, ref: str, role: _Role) -> str:
        """Return a reference to a copy of the target of `ref`, prepared as a part: not closed."""
        target = self._target(ref)
        if target is None:
            return ref
        name = f"{role.value}{re.sub('[^0-9A-Za-z_.-]', '-', ref)}"
        if name not in self._open_copies:
            self._open_copies[name] = True  # a placeholder, since the target may refer to itself
            self._open_copies[name] = self._schema(target, role)
        return f"#/$defs/{name}"

    def _target(self, ref: str) -> Any:
        """Return the schema to which a reference within the root schema points, or None."""
        if not ref.startswith("#"):
            return None
        place: Any = self._root
        for step in ref[1:].split("/")[1:]:
            key = step.replace("~1", "/").replace("~0", "~")
            if isinstance(place, Mapping) and key in place:
                place = place[key]
            elif isinstance(place, list) and key.isdecimal() and int(key) < len(place):
                place = place[int(key)]
            else:
                return None
        return place


def _is_alone(schema: Schema) -> bool:
    """Return whether no object has to be put together from the parts of this schema.

    That is so if it describes no object here, or only by a `$ref` or by an `allOf` of one schema:
    these are then prepared as a whole by themselves.
    """
    parts = _JOINING & schema.keys()
    several = schema.get("allOf")
    is_one = isinstance(several, list) and len(several) == 1
    return not parts or parts == {"$ref"} or (parts == {"allOf"} and is_one)


def _close(whole: _Object, made: dict[str, Any]) -> None:
    """Close the object `whole` in its prepared schema `made`, which is changed in place.

    The object stays open if it says itself which further keys it takes, if no part has
    `properties`, or if nothing could match it when it is closed. Empty `properties` close it too:
    that is how clients describe tools without parameters.
    """
    is_satisfiable = whole.required <= whole.names and whole.fewest <= len(whole.names)
    is_open = whole.has_word or not (whole.has_properties and is_satisfiable)
    if is_open and not (whole.is_closed or whole.has_conflict):
        return
    own = made.get("properties", {})
    others = whole.names - own.keys()
    if own or others:
        made["properties"] = {**own, **dict.fromkeys(sorted(others), True)}
    made["additionalProperties"] = False


def _texts(value: Any) -> Sequence[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else ()


def _properties(schema: Schema) -> Mapping[str, Any]:
    found = schema.get("properties")
    return found if isinstance(found, Mapping) else {}


def _says_nothing(key: str, value: Any) -> bool:
    """Return whether a keyword with this value excludes no value at all."""
    if key == "propertyNames":
        return value in ({}, True, {"type": "string"})
    if key == "not":
        return value is False
    return key == "uniqueItems" and value is False
