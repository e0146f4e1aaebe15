"""Units whose weights are coded: a layout with the fields of codes, and the way back."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from engine.weights.coding import cells, exponents
from engine.weights.coding.cells import Substitute
from engine.weights.coding.coded import LEAST_WEIGHTS, SUFFIXES, decode, encode
from engine.weights.coding.escapes import PLACES, VALUES
from engine.weights.layout import Field, UnitLayout, lay_out

_FIELDS = {
    cells.STREAM: (cells.STREAM, cells.STARTS, PLACES, VALUES),
    exponents.EXPONENTS: (*exponents.FIELDS, PLACES, VALUES),
}
# Bits of a coded weight that plans expect: slightly more than int4 copies in groups of 64 give.
CELL_BITS, EXPONENT_BITS = 7.7, 12.1


def encode_unit(
    layout: UnitLayout, memory: Tensor, substitutes: Mapping[str, Substitute]
) -> tuple[UnitLayout, Tensor]:
    """Return the layout and the bytes of a unit whose weights are coded where that is shorter.

    Args:
        layout, memory: the unit with plain weights. The bytes that are returned lie in this memory,
            in place of them, unless they are more.
        substitutes: the 4-bit copies of weights, by name, in the order of rows.
    """
    tensors: dict[str, Tensor] = {}
    for name, tensor in layout.views(memory).items():
        fields = encode(tensor, substitutes.get(name))
        if fields is None:
            tensors[name] = tensor.clone()  # its memory is written to
        else:
            tensors |= {name + suffix: field for suffix, field in fields.items()}
    specs = {name: (own.dtype, tuple(own.shape)) for name, own in tensors.items()}
    coded = lay_out(layout.name, specs)
    made = memory[: coded.nbytes]
    if coded.nbytes > layout.nbytes:  # small weights, and gaps between their fields
        made = torch.empty(coded.nbytes, dtype=torch.uint8)
    end = 0
    for field in coded.fields:
        made[end : field.offset] = 0  # the checksum includes the gaps
        end = field.offset + field.nbytes
        made[field.offset : end].view(field.dtype).view(field.shape).copy_(tensors[field.name])
    made[end:] = 0
    return coded, made


def decode_unit(
    coded: UnitLayout,
    memory: Tensor,
    layout: UnitLayout,
    out: Tensor,
    substitutes: Mapping[str, Substitute],
) -> None:
    """Fill `out`, which has `layout`, with the weights of a unit that `encode_unit` returned.

    Args:
        substitutes: the 4-bit copies of weights, by name, in any order.
    """
    stored = coded.views(memory)
    for name, tensor in layout.views(out).items():
        if name in stored:
            tensor.copy_(stored[name])
            continue
        code = next(suffix for suffix in SUFFIXES if name + suffix in stored)
        fields = {suffix: stored[name + suffix] for suffix in _FIELDS[code]}
        decode(fields, substitutes.get(name), tensor)


def expected_bytes(layout: UnitLayout, has_copy: Callable[[Field], bool]) -> int:
    """Return about how many bytes a unit takes when it is coded.

    Args:
        has_copy: returns whether a weight has a 4-bit copy.
    """
    total = 0.0
    for field in layout.fields:
        weights = torch.Size(field.shape).numel()
        if field.dtype != torch.bfloat16 or weights < LEAST_WEIGHTS:
            total += field.nbytes
        else:
            total += weights * (CELL_BITS if has_copy(field) else EXPONENT_BITS) / 8
    return min(int(total), layout.nbytes)
