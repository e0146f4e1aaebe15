"""The decoder reads codes where the CPU's kernel keeps them, also where layers share a product."""

import pytest
import torch
from torch import nn

from engine.drafting.model.substitutes import find_copies
from engine.weights.coding import cells
from engine.weights.coding.cells import CodeOrder, Substitute
from engine.weights.formats import int4, joined
from engine.weights.formats.joined import join, knows_order, weight_copy
from engine.weights.formats.linear import linear, substitute
from tests.engine.weights.coding.copies import DECODERS, copy_of, same_bits

CPU = torch.device("cpu")


def usual(*shape: int) -> torch.Tensor:
    return (torch.randn(shape) * 0.02).bfloat16()


@pytest.mark.parametrize(
    ("rows", "columns"), [(16, 64), (64, 128), (80, 96), (112, 1152), (256, 64)]
)
def test_codes_are_found_in_the_order_of_the_kernel(rows: int, columns: int) -> None:
    torch.manual_seed(0)
    copy = copy_of(usual(rows, columns), "int4 32")
    layer = linear({"weight.int4": copy.pairs, "weight.scales_and_zeros": copy.scales}, "", CPU)
    found = weight_copy(layer)
    assert found is not None and found.order is not None
    assert found.group == 32
    assert torch.equal(found.codes(slice(0, rows)), copy.codes(slice(0, rows)))


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("sizes", [(64, 64, 64), (128, 32, 32), (48, 16, 80)])
def test_parts_of_a_joined_product_are_decoded(sizes: tuple[int, ...], group: int) -> None:
    torch.manual_seed(0)
    names = ("q_proj", "k_proj", "v_proj")
    weights = {name: usual(size, 192) for name, size in zip(names, sizes, strict=True)}
    copies = {name: copy_of(weight, f"int4 {group}") for name, weight in weights.items()}
    fields = {}
    for name, copy in copies.items():
        fields[f"{name}.weight.int4"] = copy.pairs
        fields[f"{name}.weight.scales_and_zeros"] = copy.scales
    for name, part in zip(names, join(fields, names, CPU) or (), strict=True):
        kept = weight_copy(part)
        assert kept is not None
        code = cells.encode(weights[name], copies[name])
        for way in DECODERS:
            out = torch.empty_like(weights[name])
            with way():
                cells.decode(code, kept, out)
            assert same_bits(out, weights[name]), (name, way)


def test_layers_of_other_kinds_have_no_copy() -> None:
    assert weight_copy(nn.Linear(8, 8)) is None


def test_codes_beyond_the_copy_are_refused() -> None:
    copy = copy_of(usual(32, 64), "int4 32")
    code = cells.encode(usual(32, 64), copy)
    order = CodeOrder(*(own.clone() for own in int4.cpu_order(32, 64) or ()))
    order.places[31] += 1024
    with pytest.raises(AssertionError, match="beyond"):
        cells.decode(
            code, Substitute(copy.pairs, copy.scales, order), torch.empty(32, 64).bfloat16()
        )
    with pytest.raises(AssertionError):
        cells.decode(
            code, Substitute(copy.pairs, copy.scales, None, 1), torch.empty(32, 64).bfloat16()
        )


def test_the_order_of_nf4_is_known_where_no_product_changes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    weight = usual(64, 128)
    layer = substitute(weight, None, 64, CPU, "nf4")
    assert weight_copy(layer) is None
    assert knows_order("nf4", None) and knows_order("nf4", torch.device("cuda"))
    monkeypatch.setattr(joined, "knows_order", lambda *_: True)  # as on CUDA
    found, wanted = weight_copy(layer), copy_of(weight, "nf4 64")
    assert found is not None and not found.is_int4 and found.group == 64
    assert torch.equal(found.pairs, wanted.pairs) and torch.equal(found.scales, wanted.scales)


def test_layers_without_a_4_bit_form_are_left_out_of_the_copies() -> None:
    torch.manual_seed(0)
    dense = {f"{name}.weight": usual(24, 64) for name in ("gate_proj", "up_proj")}  # 24 rows
    parts = join(dense, ("gate_proj", "up_proj"), CPU)
    assert parts is not None
    down = substitute(usual(64, 64), None, 32, CPU, "int4")
    module = nn.ModuleDict({"gate_proj": parts[0], "up_proj": parts[1], "down_proj": down})
    found = find_copies({3: module})
    assert found is not None and {*found[3]} == {"down_proj.weight"}
    module["other"] = substitute(usual(64, 64), None, 64, CPU, "nf4")
    assert find_copies({3: module}) is None
