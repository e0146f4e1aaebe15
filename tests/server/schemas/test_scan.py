"""Depth and number of values are counted while a body arrives, wherever its pieces end."""

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from server.errors import ApiError
from server.schemas.limits import MAX_DEPTH, MAX_IDS, MAX_VALUES
from server.schemas.scan import PIECE, BodyScan

TEXT = st.text(st.sampled_from('ab"\\/,:[]{}\n ä€'), max_size=6)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
FORMS = st.sampled_from(
    [{}, {"indent": 1}, {"separators": (",", ":")}, {"separators": (" , ", " : ")}]
)


def depth(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0)


def count(value: Any) -> int:
    if not isinstance(value, list | dict):
        return 1
    return 1 + sum(map(count, value.values() if isinstance(value, dict) else value))


def refusal(pieces: Iterable[bytes], *bounds: int) -> str | None:
    scan = BodyScan(*bounds)
    try:
        for piece in pieces:
            scan.feed(piece)
    except ApiError as error:
        return error.code
    return None


@settings(max_examples=100)
@given(value=JSON, form=FORMS, is_ascii=st.booleans())
def test_a_body_cut_anywhere_counts_the_same_as_its_parsed_value(
    value: Any, form: dict[str, Any], is_ascii: bool
) -> None:
    raw = json.dumps(value, ensure_ascii=is_ascii, **form).encode()
    levels, values = depth(value), count(value)
    cuts = [[raw[:cut], raw[cut:]] for cut in range(len(raw))]
    cuts.append([raw[i : i + 1] for i in range(len(raw))])
    for pieces in cuts:
        assert refusal(pieces, levels, values) is None
        assert refusal(pieces, levels, values - 1) == "too_many_values"
        if levels:
            assert refusal(pieces, levels - 1, values) == "body_too_deep"


FLOOD = 4 * 2**20
OPEN = b'{"a":'


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, None),
        (b"[" * (MAX_DEPTH + 1), "body_too_deep"),
        (OPEN * MAX_DEPTH + b"1" + b"}" * MAX_DEPTH, None),
        (OPEN * FLOOD, "body_too_deep"),
        (OPEN + b"[" + b",".join([b"151643"] * MAX_IDS) + b"]}", None),
        (b"[" + b",".join([b"1"] * MAX_VALUES) + b"]", "too_many_values"),
        (OPEN + b"," * FLOOD, "too_many_values"),
        (b"[" + b"{}" * FLOOD, "too_many_values"),
        (b'"' + b"[" * FLOOD + b'"', None),
        (b'"' + b'\\"[' * FLOOD, None),
        # not JSON: the parser refuses these
        (b'"\\' * FLOOD, None),
        (b"\\" * FLOOD, None),
        (b"9" * FLOOD, None),
        (b" " * FLOOD, None),
        (b"]" * FLOOD, None),
    ],
)
def test_a_body_is_refused_where_it_first_exceeds_a_limit(body: bytes, code: str | None) -> None:
    assert refusal([body]) == code


def test_the_error_states_the_limit_and_the_place() -> None:
    scan = BodyScan()
    scan.feed(b" " * 3 * PIECE)
    place = f"more than 64 deep.* {3 * PIECE} and {3 * PIECE + 99}"
    with pytest.raises(ApiError, match=place) as raised:
        scan.feed(b"[" * 99)
    assert raised.value.status == 400


def test_nothing_is_read_after_the_piece_that_exceeds_a_limit() -> None:
    fed = []

    def endless() -> Iterable[bytes]:
        while True:
            fed.append(1)
            yield b"[],"

    assert refusal(endless(), 9, 300) == "too_many_values"
    assert len(fed) <= 300
