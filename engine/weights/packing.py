"""Units with packed tensors, of any form, and the dense tensors that they expand to."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from engine.weights.layout import TensorSpec, UnitLayout, lay_out
from engine.weights.stored_format import Packing, packings


def dense_layout(unit: UnitLayout, dtype: torch.dtype) -> UnitLayout:
    """Return the layout of the dense tensors that `expand` makes of a unit's packed tensors.

    It has no fields if the unit has no packed tensors.
    """
    shapes = {field.name: field.shape for field in unit.fields}
    packed = _packed(shapes).items()
    dense = {name: (dtype, p.dense_shape(shapes[name + p.suffixes[0]])) for name, p in packed}
    return lay_out(unit.name, dense)


def dense_tensors(unit: UnitLayout, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """Return the dtype and shape of all tensors of a unit after `expand`, by name."""
    taken = _packed_fields(_packed(field.name for field in unit.fields))
    plain = [field for field in unit.fields if field.name not in taken]
    fields = [*plain, *dense_layout(unit, dtype).fields]
    return {field.name: (field.dtype, field.shape) for field in fields}


def expand(fields: Mapping[str, Tensor], out: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the dense tensors of a unit, by name. Packed ones are expanded into `out`.

    Args:
        fields: the tensors of the unit; dense ones are returned without a copy.
        out: the views of memory with the layout of `dense_layout`, on the device of `fields`.
    """
    packed = _packed(fields)
    taken = _packed_fields(packed)
    for name, packing in packed.items():
        packing.expand(*(fields[name + suffix] for suffix in packing.suffixes), out[name])
    plain = {name: tensor for name, tensor in fields.items() if name not in taken}
    return plain | {name: out[name] for name in packed}


def _packed(names: Iterable[str]) -> dict[str, Packing]:
    """Return the packing of each packed tensor of a unit, given the names of the unit's fields."""
    known = packings()
    return {
        name.removesuffix(packing.suffixes[0]): packing
        for name in names
        for packing in known
        if name.endswith(packing.suffixes[0])
    }


def _packed_fields(packed: Mapping[str, Packing]) -> set[str]:
    """Return the names of all fields of these packed tensors."""
    return {name + suffix for name, packing in packed.items() for suffix in packing.suffixes}
