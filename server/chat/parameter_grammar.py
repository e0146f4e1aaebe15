"""Grammars for call formats that write each argument separately, as raw text or as JSON.

Raw text is a string without quotes and escapes. It cannot contain the mark that ends it; `enum`,
`pattern` and the limits of its length apply to the text itself.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from engine.parsing.format import ParameterSyntax
from engine.parsing.values import Schema, kind_of, kinds_of, resolve, typed
from engine.sampling.grammar.grammar import regex_part
from server.chat.grammar_tags import Tags, with_json_form
from server.chat.well_formed import is_well_formed

OTHER_KINDS = ("number", "boolean", "null", "array", "object")
# The keywords that the schema of all parameters may have, apart from `ANNOTATIONS`.
EXPRESSIBLE = frozenset({"type", "properties", "required", "additionalProperties"})
ANNOTATIONS = frozenset(
    {"title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly"}
    | {"$schema", "$id", "$comment", "$defs", "definitions", "x-guidance", "strict"}
)
STRING_KEYWORDS = frozenset(
    {"type", "enum", "const", "pattern", "minLength", "maxLength", "format"}
    | {"allOf", "anyOf", "oneOf", "$ref", "nullable", "contentMediaType", "contentEncoding"}
)
OTHER_KEYWORDS = frozenset(  # keywords for values that are no strings
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "items"}
    | {"prefixItems", "minItems", "maxItems", "uniqueItems", "properties", "required"}
    | {"additionalProperties", "patternProperties", "minProperties", "maxProperties"}
)
_HOURS = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_DATE = r"\d{4}-((0[13578]|1[02])-(0[1-9]|[12]\d|3[01])|(0[469]|11)-(0[1-9]|[12]\d|30)"
_DATE += r"|02-(0[1-9]|1\d|2[0-8]))"
_BYTE = r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
FORMATS = {
    "date-time": f"{_DATE}T{_HOURS}",
    "date": _DATE,
    "time": _HOURS,
    "duration": r"P(\d+D(T\d+[HMS])?|T\d+[HMS]|\d+W|\d+[YM](\d+D)?)",
    "email": rf"[a-zA-Z0-9_+-]{{1,32}}(\.[a-zA-Z0-9_+-]{{1,16}})?@{_LABEL}(\.{_LABEL})+",
    "hostname": rf"{_LABEL}(\.{_LABEL})*",
    "ipv4": rf"({_BYTE}\.){{3}}{_BYTE}",
    "ipv6": r"([0-9a-fA-F]{1,4}:){7}[0-9a-fA-F]{1,4}",
    "uuid": r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    "uri": r"[a-z][a-z0-9+.-]{1,15}:(\/\/)?[a-zA-Z0-9._~\/?#@!$&()*+,;=-]+",
}
# A raw text that cannot be read as a value of another type, because of its first character.
NO_JSON = r"([^\s0-9tfnNTF{\[\"'-](?s:.*))?"
ANY = "/(?s:.*)/"
STRING = frozenset({"string"})
MAX_REFERENCES = 16


class Inexpressible(Exception):
    """The error for a schema that cannot be expressed as a grammar of separate arguments."""


def is_expressible(schema: Schema, syntax: ParameterSyntax) -> bool:
    """Return whether a grammar can restrict separately written arguments to this schema."""
    if not is_well_formed(schema):
        return False
    try:
        parameter_rules("root", schema, syntax, Tags({}))
    except Inexpressible:
        return False
    return True


def parameter_rules(name: str, schema: Schema, syntax: ParameterSyntax, tags: Tags) -> list[str]:
    """Return the grammar rules of a call's arguments; the first rule has the name `name`.

    Raises `Inexpressible` for a schema that these rules cannot express.
    """
    if set(schema) - EXPRESSIBLE - ANNOTATIONS or not is_well_formed(schema):
        raise Inexpressible
    properties, required = dict(schema.get("properties") or {}), schema.get("required") or ()
    is_closed = schema.get("additionalProperties") is False
    properties |= {key: {} for key in required if key not in properties and not is_closed}
    if not properties and not required and not is_closed:
        return _any_parameters(name, syntax, tags)
    if not set(required) <= set(properties):
        raise Inexpressible
    writer = _Writer(name, schema, syntax, tags)
    for key, value in properties.items():
        if value is False and key not in required:
            continue
        if (
            not syntax.keys.fullmatch(key)
            or not isinstance(value, Mapping | bool)
            or value is False
        ):
            raise Inexpressible
        writer.add(key, {} if value is True else value, is_required=key in required)
    return writer.rules()


def _any_parameters(name: str, syntax: ParameterSyntax, tags: Tags) -> list[str]:
    """Return the grammar rules for arguments with any names and any values."""
    before, after = syntax.begin("\0", "string").split("\0")
    end = syntax.end if syntax.string_end is None else syntax.string_end
    head = f"{tags.literal(before)} {name}_key {tags.literal(after)}"
    separator = tags.literal(syntax.separator)
    if "{key}" in end:  # the end names the parameter, which a grammar cannot repeat
        raise Inexpressible
    rules = [
        f"{name}: ({name}_any ({separator} {name}_any)*)?",
        f"{name}_key: /[a-zA-Z_][a-zA-Z0-9_]*/",
    ]
    if syntax.is_raw:
        value = raw_text(ANY, end, syntax, tags)
    else:
        value = f"{name}_json {tags.literal(end)}"
        rules.append(f"{name}_json: %json {json.dumps(with_json_form({}))}")
    return [*rules, f"{name}_any: {head} {value}"]


class _Writer:
    """A writer of the rules for named arguments, which must come in the order of the schema."""

    def __init__(self, name: str, schema: Schema, syntax: ParameterSyntax, tags: Tags) -> None:
        self._name = name
        self._schema = schema
        self._syntax = syntax
        self._tags = tags
        self._rules: list[str] = []
        self._required: list[bool] = []

    def add(self, key: str, schema: Schema, *, is_required: bool) -> None:
        """Add the rules for a parameter with this name and schema."""
        rule = f"{self._name}_p{len(self._required)}"
        self._required.append(is_required)
        alternatives = []
        for kind, value, rules in self._values(rule, key, schema):
            alternatives.append(f"{self._tags.literal(self._syntax.begin(key, kind))} {value}")
            self._rules += rules
        self._rules.append(f"{rule}: {' | '.join(alternatives)}")

    def rules(self) -> list[str]:
        """Return all rules; the first one has the name that the writer was given."""
        name, separator = self._name, self._tags.literal(self._syntax.separator)
        count = len(self._required)
        sequence = [f'{name}_first{count}: ""', f'{name}_next{count}: ""']
        for index, is_required in enumerate(self._required):
            for state, lead in (("first", ""), ("next", separator)):
                skip = "" if is_required else f" | {name}_{state}{index + 1}"
                rule = f"{lead} {name}_p{index} {name}_next{index + 1}{skip}"
                sequence.append(f"{name}_{state}{index}: {rule}")
        return [f"{name}: {name}_first0", *sequence, *self._rules]

    def _values(self, rule: str, key: str, schema: Schema) -> Iterator[tuple[str, str, list[str]]]:
        """Yield the types that a value may have, each with its expression and the rules for it."""
        syntax, root = self._syntax, self._schema
        end = syntax.end.replace("{key}", key)
        if not syntax.is_raw:
            yield "", *self._json(f"{rule}_json", schema, end)
            return
        kinds = kinds_of(schema, root)
        if not kinds and not set(schema) - ANNOTATIONS:
            kinds = STRING
        is_marked = syntax.begin(key, "string") != syntax.begin(key, "number")
        if "string" in kinds:
            string_end = end if syntax.string_end is None else syntax.string_end
            term = string_term(schema, root, STRING if is_marked else kinds)
            yield "string", raw_text(term, string_end, syntax, self._tags), []
        others = (kinds or frozenset(OTHER_KINDS)) - STRING
        groups = [frozenset({kind}) for kind in sorted(others)] if is_marked else [others]
        for group in filter(None, groups):
            document = schema if group == kinds else restricted(schema, group)
            if document is not None:
                kind = min(group)
                yield kind, *self._json(f"{rule}_{kind}", document, end)

    def _json(self, rule: str, schema: Schema, end: str) -> tuple[str, list[str]]:
        """Return the expression of a JSON value followed by `end`, and the rules for it."""
        document = json.dumps(with_json_form(in_root(schema, self._schema)))
        return f"{rule} {self._tags.literal(end)}", [f"{rule}: %json {document}"]


def restricted(schema: Schema, kinds: frozenset[str]) -> Schema | None:
    """Return a schema of the values of `schema` that have one of the types `kinds`.

    Returns None if there are no such values.
    """
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        values = [value for value in values if kind_of(value) in kinds]
        return {"enum": values} if values else None
    types = schema.get("type")
    if types is None:
        allowed = [*sorted(kinds), "integer"] if "number" in kinds else sorted(kinds)
        return {"allOf": [schema, {"type": allowed}]}
    named = [types] if isinstance(types, str) else types
    kept = [name for name in named if ("number" if name == "integer" else name) in kinds]
    return {**schema, "type": kept} if kept else None


def in_root(schema: Schema, root: Schema) -> dict[str, Any]:
    """Return a self-contained schema, with a copy of `root` to which its references point."""
    if "$ref" not in json.dumps(schema):
        return dict(schema)
    alone = dict(_moved(schema))
    alone["$defs"] = {"root": _moved(root)}
    return alone


def _moved(value: Any) -> Any:
    """Return a copy of a schema in which references to the root point to `#/$defs/root`."""
    if isinstance(value, Mapping):
        return {
            key: f"#/$defs/root{inner[1:]}"
            if key == "$ref" and isinstance(inner, str) and inner.startswith("#")
            else _moved(inner)
            for key, inner in value.items()
        }
    return [_moved(item) for item in value] if isinstance(value, list) else value


def raw_text(term: str, end: str, syntax: ParameterSyntax, tags: Tags) -> str:
    """Return the expression of a raw text that matches `term`, followed by its end mark `end`."""
    barred = "|".join(_escaped(mark) for mark in (end.strip(), *syntax.barred))
    return tags.text(f"({term}) & ~/(?s:.*)({barred})(?s:.*)/", end)


def string_term(schema: Schema, root: Schema, kinds: frozenset[str]) -> str:
    """Return the Lark expression of the raw texts of the strings that match a schema.

    If `kinds` allow other types too, texts that would be read as one of them are excluded.
    """
    terms = list(_terms(schema, root, kinds, MAX_REFERENCES))
    if kinds != STRING and not any(key in schema for key in ("enum", "const")):
        terms.append(f"/{NO_JSON}/")
    return " & ".join(f"({term})" for term in terms) or ANY


def _terms(schema: Any, root: Schema, kinds: frozenset[str], budget: int) -> Iterator[str]:
    """Yield Lark expressions, all of which a text has to match.

    `budget` is the number of nested references and combiners that may still be followed. Raises
    `Inexpressible` when it is used up, and for keywords that have no expression.
    """
    if not isinstance(schema, Mapping) or not budget:
        raise Inexpressible
    if set(schema) - STRING_KEYWORDS - OTHER_KEYWORDS - ANNOTATIONS:
        raise Inexpressible
    if "const" in schema or "enum" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        texts = [v for v in values if isinstance(v, str)]
        texts = [v for v in texts if typed(v, kinds) == json.dumps(v, ensure_ascii=False)]
        if not texts:
            raise Inexpressible
        yield " | ".join(f"/{_escaped(text)}/" if text else '""' for text in texts)
    if "pattern" in schema:
        yield f"/{_searched(str(schema['pattern']))}/"
    if "minLength" in schema or "maxLength" in schema:
        longest = schema.get("maxLength", "")
        yield f"/(?s:.{{{schema.get('minLength', 0)},{longest}}})/"
    if schema.get("format") in FORMATS:
        yield f"/{FORMATS[schema['format']]}/"
    if "$ref" in schema:
        yield from _terms(resolve(str(schema["$ref"]), root), root, kinds, budget - 1)
    for part in schema.get("allOf") or ():
        yield from _terms(part, root, kinds, budget - 1)
    for combiner in ("anyOf", "oneOf"):
        parts = [p for p in schema.get(combiner) or () if _allows_string(p, root)]
        if parts:
            inner = (list(_terms(part, root, kinds, budget - 1)) for part in parts)
            yield " | ".join(f"({_joined(terms)})" for terms in inner)


def _joined(terms: Sequence[str]) -> str:
    return " & ".join(f"({term})" for term in terms) or ANY


def _allows_string(schema: Any, root: Schema) -> bool:
    kinds = kinds_of(schema, root) if isinstance(schema, Mapping) else STRING
    return not kinds or "string" in kinds


def _escaped(text: str) -> str:
    """Return a regular expression that matches exactly `text`, to be put between slashes."""
    return "".join(c if c.isalnum() and c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)


def _searched(pattern: str) -> str:
    """Return a regular expression for the texts in which `pattern` occurs somewhere.

    Raises `Inexpressible` for anchors elsewhere than at the ends of alternatives.
    """
    found = []
    for part in _alternatives(pattern):
        begins, part = part.startswith("^"), part.removeprefix("^")
        ends = part.endswith("$") and not re.search(r"(?<!\\)(\\\\)*\\\$$", part)
        part = part[:-1] if ends else part
        if re.search(r"(?<!\\)(\\\\)*(?<!\[)[\^$]", re.sub(r"\[(\\.|[^\]\\])*\]", "", part)):
            raise Inexpressible
        core = f"(?:{regex_part(part)})"
        found.append(("" if begins else "(?s:.*)") + core + ("" if ends else "(?s:.*)"))
    return "|".join(found)


def _alternatives(pattern: str) -> Iterator[str]:
    """Yield the alternatives of a regular expression, which `|` separates at its top level."""
    part, depth, in_class, is_escaped = "", 0, False, False
    for character in pattern:
        if character == "|" and not depth and not in_class and not is_escaped:
            yield part
            part = ""
            continue
        part += character
        if is_escaped:
            is_escaped = False
        elif character == "\\":
            is_escaped = True
        elif in_class:
            in_class = character != "]"
        elif character == "[":
            in_class = True
        else:
            depth += (character == "(") - (character == ")")
    yield part
