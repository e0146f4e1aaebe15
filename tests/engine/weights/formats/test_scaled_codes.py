"""Tests of the packed form of codes with scales: its shapes, and pieces of its expansion."""

import pytest
import torch
from torch import Tensor

from engine.compiled.compiler import switched_off
from engine.weights import packing
from engine.weights.formats import scaled_codes
from engine.weights.formats.groups import Block
from engine.weights.formats.scaled_codes import CODES, FORMS, ORDER, SCALES, Form, ScaledLayout
from engine.weights.formats.scaled_sources import write_zeros
from engine.weights.stored_format import packings

FP8, FLOAT32 = Form("e4m3"), torch.float32


@pytest.mark.parametrize(
    ("shape", "stored", "block", "is_packed"),
    [
        ((4096, 4096), (128, 128), (128, 128), True),
        ((576, 7168), (128, 128), (64, 128), True),  # of DeepSeek: half a block is left
        ((4097, 4096), (128, 128), (1, 128), False),  # a scale for each row would add 3 %
        ((64, 64), (128, 128), (64, 64), True),
        ((4096, 1000), (4096, 4096), (4096, 1000), True),
        ((8, 4096, 4096), (1, 4096), (1, 4096), True),
        ((8, 576, 7168), (128, 128), (64, 128), True),
    ],
)
def test_blocks_divide_the_weight(
    shape: tuple[int, ...], stored: Block, block: Block, is_packed: bool
) -> None:
    layout = ScaledLayout(FP8, shape, stored, FLOAT32)
    assert layout.block == block and bool(layout.packed) == is_packed
    lines, groups = shape[-2] // block[0], shape[-1] // block[1]
    assert layout.fields[SCALES] == (FLOAT32, (*shape[:-2], lines, groups))


@pytest.mark.parametrize("shape", [(96, 64), (3, 96, 64)])
def test_scales_of_smaller_blocks_are_those_of_the_file(shape: tuple[int, ...]) -> None:
    layout = ScaledLayout(FP8, shape, (40, 48), FLOAT32)
    stored = torch.rand(*shape[:-2], 3, 2)
    found = layout.spread(stored)
    height, width = layout.block
    spread = found.repeat_interleave(height, -2).repeat_interleave(width, -1)
    rows, columns = torch.arange(96) // 40, torch.arange(64) // 48
    assert torch.equal(spread, stored[..., rows, :][..., columns])


@pytest.mark.parametrize(
    ("groups", "dtype"), [(256, torch.uint8), (257, torch.int16), (40_000, torch.int32)]
)
def test_the_order_of_columns_has_the_smallest_type(groups: int, dtype: torch.dtype) -> None:
    layout = ScaledLayout(Form("uint4", True, True), (8, groups * 2), (1, 2), torch.float16)
    assert layout.fields[ORDER] == (dtype, (1, groups * 2))


@pytest.mark.parametrize(("lines", "kept"), [(6, 3), (5, 5)])
def test_zeros_are_as_small_as_codes_if_they_fill_bytes(lines: int, kept: int) -> None:
    layout = ScaledLayout(Form("uint4", has_zeros=True), (lines, 64), (1, 32), torch.float16)
    assert layout.fields[".zeros"] == (torch.uint8, (kept, 2))
    codes = torch.arange(lines * 2, dtype=torch.uint8).view(lines, 2)
    out = torch.empty(kept, 2, dtype=torch.uint8)
    write_zeros(codes, 4, out)
    found = scaled_codes._zeros_at(out, CODES["uint4"], range(lines), lines, lines)
    assert torch.equal(found + 8, codes.float())


def test_every_form_has_a_packing_of_its_own() -> None:
    suffixes = [form.suffixes[0] for form in FORMS]
    assert len(set(suffixes)) == len(FORMS) and set(suffixes) <= packings().keys()
    assert len({form.title for form in FORMS}) == len(FORMS)
    assert Form("uint3") not in FORMS


def fields_of(form: Form, rows: int, columns: int, block: Block, parts: int = 1) -> list[Tensor]:
    """Return random fields of a weight, or of some above each other."""
    generator = torch.Generator().manual_seed(0)
    layout = ScaledLayout(form, (rows, columns), block, FLOAT32)
    made = []
    for suffix, (dtype, (first, *rest)) in layout.fields.items():
        size = (parts * first, *rest)
        if dtype == FLOAT32:
            made.append(torch.rand(size, generator=generator) + 0.5)
            continue
        most = layout.grid[1] if suffix == ORDER else 120  # no code of FP8 below 120 is NaN
        values = torch.randint(0, most, size, dtype=torch.uint8, generator=generator)
        made.append(values.view(dtype))
    return made


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("block", [(1, 16), (24, 96), (12, 32)])
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.suffixes[0])
def test_compiled_code_and_torch_expand_to_the_same_bits(
    form: Form, block: Block, parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, columns = 24, 96
    fields = fields_of(form, rows, columns, block, parts)
    found = []
    for pieces in (1 << 20, 7 * columns):
        monkeypatch.setattr(scaled_codes, "_COMPILED_VALUES", pieces)
        monkeypatch.setattr(packing, "CPU_VALUES", pieces)
        for _ in range(2):
            found.append(torch.empty(parts * rows, columns, dtype=torch.bfloat16))
        scaled_codes.expand(form, *fields, found[-1])
        with switched_off():
            scaled_codes.expand(form, *fields, found[-2])
    for other in found[1:]:
        assert torch.equal(other.view(torch.int16), found[0].view(torch.int16))


def test_weights_above_each_other_have_orders_of_their_own() -> None:
    form = Form("uint4", has_zeros=True, has_order=True)
    fields = fields_of(form, 24, 96, (1, 16), parts=2)
    out, own = torch.empty(48, 96), torch.empty(24, 96)
    scaled_codes.expand(form, *fields, out)
    for part in range(2):
        halves = [field[len(field) // 2 * part :][: len(field) // 2] for field in fields]
        scaled_codes.expand(form, *halves, own)
        assert torch.equal(out[24 * part :][:24], own)
