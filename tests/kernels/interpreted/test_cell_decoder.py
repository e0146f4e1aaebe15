"""The decoder of coded weights gives the bits of the operations of torch."""

import pytest
import torch

from engine.triton_kernels import cell_decoder
from engine.weights.coding import cells
from engine.weights.coding.escapes import put_escapes
from tests.engine.weights.coding.copies import copy_of, empty_copy, same_bits


def weights(rows: int, columns: int) -> torch.Tensor:
    """Return normally distributed weights, zeros, infinities and NaN among them."""
    torch.manual_seed(rows)
    found = (torch.randn(rows, columns) * 0.02).bfloat16()
    for value in (0.0, -0.0, float("inf"), float("nan"), 1e-30):
        found[torch.rand(found.shape) < 0.002] = value
    found[0] = 0
    return found


@pytest.mark.parametrize("form", ["int4 32", "int4 64", "int4 128"])
@pytest.mark.parametrize(("rows", "columns"), [(3, 128), (5, 1152), (2, 2048)])
def test_weights_keep_every_bit(form: str, rows: int, columns: int) -> None:
    weight = weights(rows, columns)
    decode_and_compare(weight, copy_of(weight, form))


@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-8, 2.0**-26, 1.0, 2.0**100, float("inf")])
@pytest.mark.parametrize("form", ["int4 32", "nf4 64"])
def test_any_copy_is_decoded(form: str, scale: float) -> None:
    torch.manual_seed(0)
    copy = empty_copy(form, 2, 1024)
    copy.pairs.random_(256)
    copy.scales.fill_(scale)
    decode_and_compare(weights(2, 1024), copy)


def decode_and_compare(weight: torch.Tensor, copy: cells.Substitute) -> None:
    """Decode a weight by a copy of which it is the last rows, and compare the bits."""
    fields = cells.encode(weight, copy)
    pairs = torch.cat([copy.pairs[:1], copy.pairs])
    scales = torch.cat([copy.scales[:, :1], copy.scales], 1) if copy.is_int4 else None
    scales = torch.cat([copy.scales[:1], copy.scales]) if scales is None else scales
    out = torch.full_like(weight, 7.0)
    ends = cells.find_ends(is_int4=copy.is_int4)
    cell_decoder.decode(pairs, scales, ends, fields[cells.STREAM], fields[cells.STARTS], 1, out)
    put_escapes(fields, out)
    assert same_bits(out, weight)
