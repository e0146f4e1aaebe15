"""Units whose weights are coded, in the memory of the plain ones."""

import torch
from torch import Tensor

from engine.weights.coding.cells import Substitute
from engine.weights.coding.units import decode_unit, encode_unit
from engine.weights.layout import TensorSpec, UnitLayout, lay_out
from tests.engine.weights.coding.copies import copy_of, same_bits
from tests.engine.weights.coding.kinds import of_bits, usual


def unit_of(tensors: dict[str, Tensor]) -> tuple[UnitLayout, Tensor]:
    """Return the layout of a unit, and its memory, with rubbish between the tensors."""
    specs: dict[str, TensorSpec] = {
        name: (own.dtype, tuple(own.shape)) for name, own in tensors.items()
    }
    layout = lay_out("layer", specs)
    memory = torch.randint(1, 256, (layout.nbytes + 4096,), dtype=torch.uint8)
    for name, view in layout.views(memory).items():
        view.copy_(tensors[name])
    return layout, memory


def assert_decoded(
    coded: UnitLayout, made: Tensor, tensors: dict[str, Tensor], copies: dict[str, Substitute]
) -> None:
    layout, out = unit_of({name: torch.zeros_like(own) for name, own in tensors.items()})
    decode_unit(coded, made, layout, out, copies)
    for name, view in layout.views(out).items():
        assert same_bits(view, tensors[name]), name


def test_a_coded_unit_takes_the_place_of_the_plain_one() -> None:
    torch.manual_seed(0)
    tensors = {
        "norm": usual(100),
        "q": usual(64, 128),
        "any bits": of_bits(torch.randint(-(1 << 15), 1 << 15, (64, 128))),  # stays plain
        "experts": usual(2, 64, 65),
        "bias": usual(33),
    }
    layout, memory = unit_of(tensors)
    copies = {"q": copy_of(tensors["q"], "int4 32")}
    coded, made = encode_unit(layout, memory, copies)
    assert coded.nbytes < layout.nbytes and len(made) == coded.nbytes
    assert made.data_ptr() == memory.data_ptr()
    assert {"norm", "any bits", "bias", "q.cells", "experts.exponents"} <= {
        field.name for field in coded.fields
    }
    assert_decoded(coded, made, tensors, copies)
    is_gap = torch.ones(len(made), dtype=torch.bool)
    for field in coded.fields:
        is_gap[field.offset : field.offset + field.nbytes] = False
    assert bool(is_gap.any()) and not made[is_gap].any()


def test_a_unit_that_gaps_between_fields_make_longer_gets_other_memory() -> None:
    torch.manual_seed(0)
    weight = usual(4096)
    weight[:330] = of_bits(torch.randint(-(1 << 15), 1 << 15, (330,)))  # escapes, most of them
    layout, memory = unit_of({"weight": weight})
    coded, made = encode_unit(layout, memory, {})
    assert coded.nbytes > layout.nbytes and len(made) == coded.nbytes
    assert_decoded(coded, made, {"weight": weight}, {})
    assert same_bits(layout.views(memory)["weight"], weight)
