"""JSON schemas made ready for grammars: objects are closed, what grammars cannot say is dropped.

llguidance reads a schema without `additionalProperties` as one that allows every key, and weak
models then invent keys. So objects with `properties` are closed, unless the schema says otherwise.
That is decided for the object that all parts of a schema make together (`allOf`, `$ref` and what
stands beside them), never inside a part: two closed parts would exclude each other's keys.

Pure. A schema is never changed in place.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

Schema = Mapping[str, Any]

# What grammars cannot express. Without `strict` these are dropped, and the answer's header says so.
DROPPED = frozenset(
    {
        *("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems"),
        *("not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies"),
        *("propertyNames", "unevaluatedProperties", "$dynamicRef", "$recursiveRef"),
    }
)
# Those that say something only beside another one.
_COMPANIONS = frozenset({"then", "else", "minContains", "maxContains"})
FORMATS = frozenset(
    {
        *("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"),
        *("uri", "unknown"),
    }
)
_IN_PLACE_LISTS = ("allOf", "anyOf", "oneOf")
_IN_PLACE = ("if", "then", "else")  # dropped, but the names in them are meant
_MAPS = ("properties", "patternProperties", "$defs", "definitions")
_SINGLES = ("additionalProperties", "items", "additionalItems")
_LISTS = ("prefixItems", "items")
_PATTERNS = "patternProperties"
# Look-around and references to groups, which regular expressions in grammars do not have.
_LOOK_AROUND = re.compile(r"(?<!\\)(?:\\\\)*(?:\(\?(?:<?[=!])|\\[1-9]|\\k<)")
# Keys that make an object together with the branches of `anyOf` or `oneOf` beside them.
_JOINING = frozenset(
    {
        *("properties", "patternProperties", "required", "additionalProperties", "propertyNames"),
        *("minProperties", "maxProperties", "unevaluatedProperties", "allOf", "$ref"),
    }
)


class _Role(Enum):
    """What a schema is to the object that it describes.

    A part is never closed by itself. Where parts that the client closed exclude what others
    require, nothing would match: then they are lifted, which is to say opened, and the object that
    they make together is closed instead.
    """

    WHOLE = "whole"
    PART = "part"
    LIFTED = "lifted"


@dataclass
class _Object:
    """What all parts of a schema say about an object together."""

    names: set[str] = field(default_factory=set)
    required: set[str] = field(default_factory=set)
    has_word: bool = False  # on further keys
    has_conflict: bool = False  # a closed part excludes what another one requires
    is_closed: bool = False  # by `unevaluatedProperties`, which counts for all parts together
    fewest: int = 0


def prepared_schema(schema: Schema, *, is_strict: bool) -> tuple[dict[str, Any], list[str]]:
    """Return a schema for a grammar, and the names of the keywords that were dropped.

    With `is_strict` only keywords that say nothing are dropped: the others are left for the
    compiler to refuse.
    """
    preparation = _Preparation(schema, is_strict=is_strict)
    prepared = preparation.run()
    return prepared, preparation.dropped


class _Preparation:
    def __init__(self, root: Schema, *, is_strict: bool) -> None:
        self._root = root
        self._is_strict = is_strict
        self._open_copies: dict[str, Any] = {}  # by name: targets of references, as parts
        self.dropped: list[str] = []

    def run(self) -> dict[str, Any]:
        prepared = self._schema(self._root, _Role.WHOLE)
        if not isinstance(prepared, dict):  # it takes nothing
            return {"not": {}}
        if self._open_copies:
            prepared["$defs"] = {**prepared.get("$defs", {}), **self._open_copies}
        return prepared

    def _schema(self, schema: Any, role: _Role) -> Any:
        """Return a schema made ready."""
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
        """Return the value of one keyword with the schemas in it made ready."""
        if key in _IN_PLACE_LISTS and isinstance(value, list):
            return [self._schema(inner, role) for inner in value]
        if key in _MAPS and isinstance(value, Mapping):
            inner = {name: self._schema(one, _Role.WHOLE) for name, one in value.items()}
            return {k: v for k, v in inner.items() if key != _PATTERNS or self._keeps_pattern(k)}
        if key in _LISTS and isinstance(value, list):
            return [self._schema(one, _Role.WHOLE) for one in value]
        return self._schema(value, _Role.WHOLE) if key in _SINGLES else value

    def _keeps(self, key: str, value: Any, schema: Schema) -> bool:
        """Return whether a keyword stays, and note it if it had a meaning and does not."""
        if key == "pattern":
            return not isinstance(value, str) or self._keeps_pattern(value, key)
        if key in ("minProperties", "maxProperties"):
            names = schema.get("properties") or {}
            is_known = names.keys() <= set(_texts(schema.get("required")))
            return is_known or self._is_strict or self._drop(key)
        if key == "format":
            return value in FORMATS
        if key == "$schema":
            return isinstance(value, str) and "json-schema.org/" in value
        if key not in DROPPED or _says_nothing(key, value):
            return key not in DROPPED
        if key == "unevaluatedProperties" and isinstance(value, bool):
            return False  # `_close` minds it
        return self._is_strict or self._drop(key)

    def _keeps_pattern(self, pattern: str, key: str = _PATTERNS) -> bool:
        return self._is_strict or _LOOK_AROUND.search(pattern) is None or self._drop(key)

    def _drop(self, key: str) -> Literal[False]:
        if key not in _COMPANIONS and key not in self.dropped:
            self.dropped.append(key)
        return False

    def _object(self, schema: Schema) -> _Object:
        """Return what the parts of a schema say about an object together."""
        whole = _Object()
        parts = list(self._parts(schema, set()))
        for part in parts:
            whole.names.update(part.get("properties") or ())
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
            and not whole.required <= set(part.get("properties") or ())
            for part in parts
        )
        return whole

    def _parts(self, schema: Any, seen: set[str]) -> Iterator[Schema]:
        """Yield the schemas that make an object together."""
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
        """Return a reference to the target of `ref` as a part, which is not closed by itself."""
        target = self._target(ref)
        if target is None:
            return ref
        name = f"{role.value}{re.sub('[^0-9A-Za-z_.-]', '-', ref)}"
        if name not in self._open_copies:
            self._open_copies[name] = True  # until it is made: it may refer to itself
            self._open_copies[name] = self._schema(target, role)
        return f"#/$defs/{name}"

    def _target(self, ref: str) -> Any:
        """Return the schema that a reference within this schema names; None without one."""
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
    """Return whether no part makes an object: there is none, or one that stands for all."""
    parts = _JOINING & schema.keys()
    several = schema.get("allOf")
    is_one = isinstance(several, list) and len(several) == 1
    return not parts or parts == {"$ref"} or (parts == {"allOf"} and is_one)


def _close(whole: _Object, made: dict[str, Any]) -> None:
    """Close an object, unless it says itself which further keys it takes."""
    is_satisfiable = whole.required <= whole.names and whole.fewest <= len(whole.names)
    is_open = whole.has_word or not (whole.names and is_satisfiable)
    if is_open and not (whole.is_closed or whole.has_conflict):
        return
    own = made.get("properties", {})
    others = whole.names - own.keys()
    if own or others:
        made["properties"] = {**own, **dict.fromkeys(sorted(others), True)}
    made["additionalProperties"] = False


def _texts(value: Any) -> Sequence[str]:
    return [one for one in value if isinstance(one, str)] if isinstance(value, list) else ()


def _says_nothing(key: str, value: Any) -> bool:
    """Return whether a keyword with this value excludes nothing."""
    if key == "propertyNames":
        return value in ({}, True, {"type": "string"})
    if key == "not":
        return value is False
    return key == "uniqueItems" and value is False
