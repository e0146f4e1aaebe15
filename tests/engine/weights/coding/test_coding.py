"""Coded weights are decoded to the same bits, by compiled code and by operations of torch."""

from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, strategies as st
from torch import Tensor

from engine.compiled import compiler
from engine.weights.coding import cells, coded, escapes, exponents
from engine.weights.coding.cells import Substitute
from tests.engine.weights.coding.copies import DECODERS, FORMS, copy_of, empty_copy, same_bits
from tests.engine.weights.coding.kinds import (
    SCALES,
    WEIGHTS,
    copy_with_any_scale,
    of_bits,
    trained,
    usual,
    with_some,
)

ROWS, COLUMNS = 19, 1152  # rows beside those of a vector, and a second segment


def assert_round_trip(weight: Tensor, copy: Substitute) -> dict[str, Tensor]:
    """Assert that both ways of coding a weight agree, and return its fields."""
    found = cells.encode(weight, copy)
    with compiler.switched_off():
        wanted = cells.encode(weight, copy)
    assert found.keys() == wanted.keys()
    for name, field in wanted.items():
        assert torch.equal(found[name], field), name
    for way in DECODERS:
        out = torch.full_like(weight, 7.0)
        with way():
            cells.decode(found, copy, out)
        assert same_bits(out, weight), way
    return found


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_any_kind_keep_every_bit(kind: str, form: str) -> None:
    assert compiler.is_available()
    torch.manual_seed(0)
    weight = WEIGHTS[kind](ROWS, COLUMNS)
    assert_round_trip(weight, copy_of(weight, form))


@pytest.mark.parametrize("kind", WEIGHTS)
def test_exponents_of_any_kind_keep_every_bit(kind: str) -> None:
    torch.manual_seed(0)
    assert_exponents_keep_every_bit(WEIGHTS[kind](ROWS, COLUMNS))


@given(seed=st.integers(0, 1 << 32), pairs=st.integers(1, 100), spread=st.integers(1, 300))
def test_exponents_of_any_number_of_weights_keep_every_bit(
    seed: int, pairs: int, spread: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.randint(spread, (2 * pairs,), generator=generator) % 256
    rest = torch.randint(256, (2 * pairs,), generator=generator)
    bits = exponent << 7 | (rest & 127) | (rest >> 7) << 15
    assert_exponents_keep_every_bit(of_bits(bits - (bits >> 15 << 16)))


def assert_exponents_keep_every_bit(weight: Tensor) -> None:
    """Assert that both ways of coding exponents agree, and give back the weight."""
    found = exponents.encode(weight)
    with compiler.switched_off():
        wanted = exponents.encode(weight)
    assert found is not None and wanted is not None
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], field) for name, field in wanted.items())
    nbytes = escapes.coded_bytes(found)
    for way in (nullcontext, compiler.switched_off):
        out = torch.full_like(weight, 7.0)
        with way():
            exponents.decode(found, out)
            assert exponents.encode(weight, nbytes - 1) is None
            assert exponents.encode(weight, nbytes) is not None
        assert same_bits(out, weight), way


@pytest.mark.parametrize("form", FORMS)
def test_any_scale_and_zero_can_be_coded(form: str) -> None:
    """Every pair of special scales and zeros occurs, with every code."""
    torch.manual_seed(0)
    copy = copy_with_any_scale(form, COLUMNS)
    for kind in ("usual", "any bits"):
        assert_round_trip(WEIGHTS[kind](len(SCALES), COLUMNS), copy)


@given(form=st.sampled_from(FORMS), seed=st.integers(0, 1 << 32), rows=st.integers(1, 33))
def test_a_copy_of_other_weights_costs_only_bits(form: str, seed: int, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    copy = empty_copy(form, rows, 256)
    for field in (copy.pairs, copy.scales.view(torch.uint8)):
        field.random_(256, generator=generator)
    bits = torch.randint(-(1 << 15), 1 << 15, (rows, 256), generator=generator)
    assert_round_trip(of_bits(bits), copy)


@pytest.mark.parametrize("form", FORMS)
def test_only_weights_near_zero_are_escapes(form: str) -> None:
    torch.manual_seed(0)
    weight = usual(64, 1024)
    copy = copy_of(weight, form)
    listed = cells.encode(weight, copy)[escapes.PLACES].long()
    grouped = weight.float().view(64, -1, copy.group)
    step = ((grouped.amax(-1) - grouped.amin(-1)) / 15).repeat_interleave(copy.group, 1)
    assert len(listed)
    assert bool((weight.float().abs() < step / 100).view(-1)[listed].all())


@pytest.mark.parametrize("form", FORMS)
def test_groups_of_zeros_take_no_bits_and_other_zeros_few(form: str) -> None:
    torch.manual_seed(0)
    weight = usual(64, 1024)
    weight[:, :512] = 0  # whole groups
    whole = cells.encode(weight, copy_of(weight, form))
    assert 8 * escapes.coded_bytes(whole) / weight.numel() < 4.1
    weight = usual(64, 1024)
    weight[torch.rand(weight.shape) < 0.5] = 0
    some = cells.encode(weight, copy_of(weight, form))
    assert 8 * escapes.coded_bytes(some) / weight.numel() < 10
    assert len(some[escapes.PLACES]) < weight.numel() / 200


@pytest.mark.parametrize("form", [*FORMS, ""])
def test_any_number_of_threads_gives_the_same_bits(form: str) -> None:
    torch.manual_seed(0)
    weight, before = usual(403, 1024), torch.get_num_threads()
    copy, found = copy_of(weight, form) if form else None, []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            fields, out = coded.encode(weight, copy), torch.empty_like(weight)
            assert fields is not None and len(fields[escapes.PLACES])
            coded.decode(fields, copy, out)
            assert same_bits(out, weight)
            found.append(fields)
    finally:
        torch.set_num_threads(before)
    for fields in found[1:]:
        assert all(torch.equal(found[0][name], field) for name, field in fields.items())


@pytest.mark.parametrize(
    ("form", "most"), [("int4 32", 7.5), ("int4 64", 7.6), ("int4 128", 7.7), ("nf4 64", 7.4)]
)
def test_normally_distributed_weights_take_few_bits(form: str, most: float) -> None:
    torch.manual_seed(0)
    weight = usual(256, 1024)
    for importance in (None, torch.rand(1024) ** 4):  # also with scales that clip weights
        fields = coded.encode(weight, copy_of(weight, form, importance))
        assert fields is not None and cells.STREAM in fields
        assert 8 * escapes.coded_bytes(fields) / weight.numel() < most
    fields = coded.encode(weight, None)
    assert fields is not None and exponents.EXPONENTS in fields
    assert 8 * escapes.coded_bytes(fields) / weight.numel() < 12.1


def test_trained_weights_take_few_bits() -> None:
    weights = trained()
    for form, most in [("int4 32", 7.9), ("int4 64", 7.9), ("nf4 64", 7.9), ("", 12.2)]:
        nbytes = 0
        for weight in weights:
            fields = coded.encode(weight, copy_of(weight, form) if form else None)
            assert fields is not None
            nbytes += escapes.coded_bytes(fields)
        assert 8 * nbytes / sum(weight.numel() for weight in weights) <= most, form


@pytest.mark.parametrize(
    ("weight", "form"),
    [
        (torch.randn(64, 128), "int4 32"),  # float32
        (usual(2, 128), "int4 32"),  # small
        (WEIGHTS["any bits"](64, 128), "int4 32"),  # nothing is saved
        (WEIGHTS["any bits"](64, 128), ""),
        (usual(67, 67), ""),  # an odd number
    ],
)
def test_what_is_not_worth_it_stays_plain(weight: Tensor, form: str) -> None:
    assert coded.encode(weight, copy_of(weight, form) if form else None) is None


def test_a_useless_copy_leads_to_the_other_code() -> None:
    torch.manual_seed(0)
    weight = usual(64, 128)
    copy = copy_of(weight * 1000, "int4 32")
    copy.scales.mul_(-1)
    fields = coded.encode(weight, copy)
    assert fields is not None and exponents.EXPONENTS in fields
    out = torch.empty_like(weight)
    coded.decode(fields, copy, out)
    assert same_bits(out, weight)


@pytest.mark.parametrize("damage", ["stream", "starts", "copy"])
def test_damaged_fields_reach_no_other_memory(damage: str) -> None:
    """The checksums of units find damage; the decoder must end nevertheless."""
    torch.manual_seed(0)
    weight = usual(64, 2048)
    copy = copy_of(weight, "int4 32")
    fields = cells.encode(weight, copy)
    if damage == "stream":
        fields[cells.STREAM] = fields[cells.STREAM][:100].clone()
    elif damage == "starts":
        fields[cells.STARTS].random_(-(1 << 31), 1 << 31)
    else:
        copy.pairs.random_(256)
    for way in DECODERS:
        out = torch.empty_like(weight)
        with way():
            cells.decode(fields, copy, out)
        assert not same_bits(out, weight)


@pytest.mark.parametrize("form", FORMS)
def test_rows_of_a_coded_weight_are_a_coded_weight(form: str) -> None:
    torch.manual_seed(0)
    weight = with_some(0.1)(100, 1152)
    copy = copy_of(weight, form)
    fields = cells.encode(weight, copy)
    before = Substitute(copy.pairs, copy.scales, first=30)
    for kept, rows in ((copy, range(100)), (copy, range(30, 51)), (before, range(16, 17))):
        own = kept.first + rows.start
        out = torch.empty(len(rows), 1152, dtype=weight.dtype)
        if kept is before:
            fields, _ = cells.part(fields, copy, range(30, 100))
        coded.decode(*cells.part(fields, kept, rows), out)
        assert same_bits(out, weight[own : own + len(rows)])


@pytest.mark.parametrize(("first", "last"), [(0, 6000), (0, 2), (4446, 4448), (2000, 5998)])
def test_a_part_of_coded_exponents_is_a_coded_weight(first: int, last: int) -> None:
    torch.manual_seed(0)
    weight = with_some(0.0)(6000)
    fields = exponents.encode(weight)
    assert fields is not None
    out = torch.empty(last - first, dtype=weight.dtype)
    exponents.decode(exponents.part(fields, first, last), out)
    assert same_bits(out, weight[first:last])


def damaged(fields: dict[str, Tensor] | None, field: str, at: int) -> dict[str, Tensor]:
    assert fields is not None
    fields[field].view(torch.uint8)[at] ^= 1
    return fields


@pytest.mark.parametrize("at", [0, -9])
def test_an_encoder_that_is_wrong_is_found(
    at: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In the first and in the last part that is decoded to be compared."""
    monkeypatch.setattr(coded, "_COMPARED", 1 << 12)
    weight = usual(72, 128)
    right, by_exponents = cells.encode_within, exponents.encode
    assert coded.encode(weight, copy_of(weight, "int4 32")) is not None
    monkeypatch.setattr(cells, "encode_within", lambda *own: damaged(right(*own), cells.STREAM, at))
    assert coded.encode(weight, copy_of(weight, "int4 32")) is None
    assert "decodes to other bits" in caplog.text
    caplog.clear()
    for field in (exponents.EXPONENTS, exponents.FRACTIONS):
        assert coded.encode(weight, None) is not None
        with monkeypatch.context() as own:
            own.setattr(
                exponents, "encode", lambda *a, name=field: damaged(by_exponents(*a), name, at)
            )
            assert coded.encode(weight, None) is None
        assert "decodes to other bits" in caplog.text
        caplog.clear()
