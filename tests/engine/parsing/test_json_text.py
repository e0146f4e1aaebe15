"""JSON that models write, and what is sent of it: JSON that always parses."""

import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from engine.parsing.json_text import JsonText, NotJson, as_json
from engine.parsing.values import MAX_SCHEMAS, kinds_of, parameter_schema, typed
from tests.engine.parsing.readings import TOOLS

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def rewritten(text: str) -> tuple[str, bool]:
    """Return what is written of a text, and whether it ended as JSON."""
    writer, written = JsonText(), ""
    try:
        for character in text:
            if writer.is_complete:
                break
            written += writer.feed(character)
    except NotJson:
        return written + writer.finish(), False
    return (written, True) if writer.is_complete else (written + writer.finish(), False)


@given(st.dictionaries(st.text(), JSON, max_size=4), st.sampled_from([None, 1]), st.booleans())
def test_every_json_object_is_written_as_it_is(
    value: dict[str, object], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert rewritten(text) == (text, True)
    assert as_json(f" {text}\n") == text
    reader = JsonText()
    for character in text:
        reader.feed(character)
    assert {k: json.loads(v) for k, v in reader.values.items()} == {
        key: item for key, item in value.items() if not isinstance(item, dict | list)
    }


@given(st.text(st.sampled_from("{}[]\",:\\u0aeE+-.1 tfn'\n"), max_size=14))
def test_whatever_is_written_parses(inner: str) -> None:
    written, _ = rewritten("{" + inner)
    assert isinstance(json.loads(written), dict)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": "x\ny\t"}', '{"a": "x\\ny\\t"}'),
        (r'{"a": "\d \u12"}', r'{"a": "\\d \\u12"}'),
        ("{'a': 'it\\'s \"q\"'}", '{"a": "it\'s \\"q\\""}'),
        ('{"a": True, "b": None,}', '{"a": true, "b": null}'),
        ('{"a": [1, 2}', '{"a": [1, 2]}'),
        ('{{"a": {"b": 1}}}', '{"a": {"b": 1}}'),
        ('{"a": "x', '{"a": "x"}'),
        ('{"a": "x\\', '{"a": "x"}'),
        ('{"a": 1', "{}"),
        ('{"a": 1, "b', '{"a": 1}'),
        ('{"a": 1, "b": tr', '{"a": 1}'),
        ('{"a": [1, {"b": "c"', '{"a": [1, {"b": "c"}]}'),
        ('{"a": 1, b}', '{"a": 1}'),
    ],
)
def test_what_is_nearly_json_is_mended(text: str, expected: str) -> None:
    assert rewritten(text)[0] == expected


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("key", "5", '"5"'),
        ("key", "null", '"null"'),
        ("key", '"tea"', '"\\"tea\\""'),
        ("r", "5", '"5"'),
        ("n", " 3 ", "3"),
        ("n", "1" * 5000, "1" * 5000),
        ("n", "three", '"three"'),
        ("b", "True", "true"),
        ("z", "None", "null"),
        ("o", "{'y': 'z'}", '{"y": "z"}'),
        ("o", "[" * 3000, json.dumps("[" * 3000)),
        ("l", '["a", "b"]', '["a", "b"]'),
        ("u", "null", "null"),
        ("u", "5", '"5"'),
        ("e", "2", "2"),
        ("e", "1", "1"),
        ("other", "5", "5"),
        ("other", "True", "true"),
        ("other", '{"a": 1}', '{"a": 1}'),
        ("other", '"tea"', '"\\"tea\\""'),
        ("other", "tea", '"tea"'),
        ("other", "NaN", "null"),
        ("other", "", '""'),
    ],
)
def test_raw_text_gets_the_type_of_its_schema(key: str, text: str, expected: str) -> None:
    parameters: Any = TOOLS["look_up"]
    assert typed(text, kinds_of(parameter_schema(parameters, key), parameters)) == expected


def test_a_schema_that_refers_to_itself_is_read_in_a_short_time() -> None:
    itself = [{"$ref": "#/$defs/a"}] * 9
    parameters: Any = {"$defs": {"a": {"anyOf": [*itself, {"type": ["integer", "null"]}]}}}
    assert kinds_of({"$ref": "#/$defs/a"}, parameters) == {"number", "null"}
    parameters["$defs"]["a"]["anyOf"] += [{"type": "string"} for _ in range(MAX_SCHEMAS)]
    assert kinds_of({"$ref": "#/$defs/a"}, parameters) == frozenset()


@pytest.mark.parametrize("schema", [{"type": 5}, {"anyOf": 5}, {"enum": 5}, {"$ref": "a"}])
def test_a_schema_that_is_none_allows_any_type_or_an_unknown_one(schema: Any) -> None:
    assert typed("3", kinds_of(schema, {})) in ("3", '"3"')
