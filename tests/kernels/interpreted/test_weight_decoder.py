"""The decoders of coded weights give back the bits of the weights that were encoded."""

import pytest
import torch
from torch import Tensor

from engine.triton_kernels import weight_decoder
from engine.weights.coding import cells, escapes, exponents
from engine.weights.coding.cells import Substitute
from tests.engine.weights.coding.copies import copy_of, empty_copy, same_bits
from tests.engine.weights.coding.kinds import WEIGHTS, copy_with_any_scale, trained, usual

FORMS = ("int4 32", "int4 64", "int4 128", "int4 1024", "nf4 64")
ROWS, COLUMNS = 5, 1152  # a second segment, which is shorter
MOST_ROWS = 8  # of a trained weight: the interpreter takes milliseconds for each segment


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_of_any_kind_keep_every_bit(kind: str, form: str) -> None:
    torch.manual_seed(0)
    weight = WEIGHTS[kind](ROWS, 2048 if form == "int4 1024" else COLUMNS)
    decode_and_compare(weight, copy_of(weight, form))


@pytest.mark.parametrize("form", FORMS)
def test_any_scale_and_zero_can_be_decoded(form: str) -> None:
    torch.manual_seed(0)
    copy = copy_with_any_scale(form, 2048)
    for kind in ("usual", "any bits"):
        decode_and_compare(WEIGHTS[kind](len(copy.pairs), 2048), copy)


@pytest.mark.parametrize("form", FORMS)
def test_a_copy_of_other_weights_costs_only_bits(form: str) -> None:
    torch.manual_seed(0)
    copy = empty_copy(form, ROWS, 1024)
    for field in (copy.pairs, copy.scales.view(torch.uint8)):
        field.random_(256)
    decode_and_compare(WEIGHTS["any bits"](ROWS, 1024), copy)


@pytest.mark.parametrize("form", ["int4 32", "int4 64", "nf4 64"])
def test_trained_weights_keep_every_bit(form: str) -> None:
    for weight in trained():
        some = weight[:MOST_ROWS].contiguous()
        for importance in (None, torch.rand(some.shape[1]) ** 4):  # also with scales that clip
            decode_and_compare(some, copy_of(some, form, importance))


def decode_and_compare(weight: Tensor, copy: Substitute) -> None:
    """Decode a weight by a copy of which it is the last rows, and compare the bits."""
    fields = cells.encode(weight, copy)
    pairs = torch.cat([copy.pairs[:1], copy.pairs])
    first = copy.scales[:, :1] if copy.is_int4 else copy.scales[:1]
    scales = torch.cat([first, copy.scales], 1 if copy.is_int4 else 0)
    out = torch.full_like(weight, 7.0)
    ends = cells.find_ends(is_int4=copy.is_int4)
    stream, starts = fields[cells.STREAM], fields[cells.STARTS]
    weight_decoder.decode_cells(pairs, scales, ends, stream, starts, 1, out)
    weight_decoder.put_escapes(fields[escapes.PLACES], fields[escapes.VALUES], out)
    assert same_bits(out, weight)


@pytest.mark.parametrize("kind", WEIGHTS)
def test_exponents_of_any_kind_keep_every_bit(kind: str) -> None:
    torch.manual_seed(0)
    check_exponents(WEIGHTS[kind](ROWS, COLUMNS))


def test_exponents_of_trained_weights_and_of_experts_keep_every_bit() -> None:
    for weight in [*trained(), usual(3, 5, 64)]:
        check_exponents(weight)


def check_exponents(weight: Tensor) -> None:
    fields = exponents.encode(weight)
    assert fields is not None
    out = torch.full_like(weight, 7.0)
    numbers, fractions, table = (fields[name] for name in exponents.FIELDS)
    weight_decoder.decode_exponents(numbers, fractions, table, out)
    weight_decoder.put_escapes(fields[escapes.PLACES], fields[escapes.VALUES], out)
    assert same_bits(out, weight)


@pytest.mark.parametrize("damage", [cells.STREAM, cells.STARTS, escapes.PLACES])
def test_damaged_fields_reach_no_other_memory(damage: str) -> None:
    """The checksums of units find damage; other weights in the memory stay as they are."""
    torch.manual_seed(0)
    weight = usual(ROWS, COLUMNS)
    copy = copy_of(weight, "int4 64")
    fields = cells.encode(weight, copy)
    fields[damage].view(torch.uint8).random_(256)
    memory = torch.full((3 * ROWS, COLUMNS), 7.0).bfloat16()
    out = memory[ROWS : 2 * ROWS]
    stream, starts = fields[cells.STREAM], fields[cells.STARTS]
    ends = cells.find_ends(is_int4=True)
    weight_decoder.decode_cells(copy.pairs, copy.scales, ends, stream, starts, 0, out)
    weight_decoder.put_escapes(fields[escapes.PLACES], fields[escapes.VALUES], out)
    assert bool((memory[:ROWS] == 7.0).all()) and bool((memory[2 * ROWS :] == 7.0).all())
