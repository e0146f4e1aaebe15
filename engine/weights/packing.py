"""Units with packed tensors, of any form, and the dense tensors that they expand to."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from engine.weights.layout import TensorSpec, UnitLayout, lay_out
from engine.weights.stored_format import Packing, packings

CPU_VALUES = 1 << 19  # expanded at a time: their temporaries stay in the processor's cache
DEVICE_VALUES = 1 << 22  # on other devices, where fewer values take less time than their kernels
TEMPORARY_BYTES = 24 * DEVICE_VALUES  # of such a piece: at most six temporaries of 4 bytes a value


def values_at_once(device: torch.device) -> int:
    """Return how many values functions that have temporaries expand at a time on a device."""
    return CPU_VALUES if device.type == "cpu" else DEVICE_VALUES


def dense_layout(unit: UnitLayout, dtype: torch.dtype) -> UnitLayout:
    """Return the layout of the dense tensors that `expand` makes of a unit's packed tensors.

    It has no fields if the unit has no packed tensors.
    """
    shapes = {field.name: field.shape for field in unit.fields}
    packed = _packed(shapes).items()
    dense = {name: (dtype, p.dense_shape(shapes[name + p.suffixes[0]])) for name, p in packed}
    return lay_out(unit.name, dense)


def dense_tensors(unit: UnitLayout, dtype: torch.dtype) -> dict[str, TensorSpec]:
    """Return the dtype and shape of all tensors of a unit after `expand`, by name.

    Their order is that of the unit, so it does not depend on whether tensors are packed.
    """
    packed = _packed(field.name for field in unit.fields)
    dense = {field.name: (field.dtype, field.shape) for field in dense_layout(unit, dtype).fields}
    first = {name + packing.suffixes[0]: name for name, packing in packed.items()}
    taken = _packed_fields(packed)
    found: dict[str, TensorSpec] = {}
    for field in unit.fields:
        if (name := first.get(field.name)) is not None:
            found[name] = dense[name]
        elif field.name not in taken:
            found[field.name] = (field.dtype, field.shape)
    return found


def dense_bytes(unit: UnitLayout, dtype: torch.dtype) -> int:
    """Return the bytes of all tensors of a unit after `expand`."""
    return lay_out(unit.name, dense_tensors(unit, dtype)).nbytes


def expanded_by_packing(units: Sequence[UnitLayout], dtype: torch.dtype) -> dict[str, int]:
    """Return the bytes of the dense tensors that `expand` makes, by the packing's first suffix."""
    total: dict[str, int] = defaultdict(int)
    for unit in units:
        packed = _packed(field.name for field in unit.fields)
        for field in dense_layout(unit, dtype).fields:
            total[packed[field.name].suffixes[0]] += field.nbytes
    return dict(total)


def damaged_scales(fields: Mapping[str, Tensor]) -> dict[str, int]:
    """Return how many scales of each packed tensor of a unit are NaN or infinite, by its name."""
    return {
        name: packing.count_damaged(*(fields[name + suffix] for suffix in packing.suffixes))
        for name, packing in _packed(fields).items()
    }


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
    found = {}
    for name in names:
        dense, dot, suffix = name.rpartition(".")
        if (packing := known.get(dot + suffix)) is not None:
            found[dense] = packing
    return found


def _packed_fields(packed: Mapping[str, Packing]) -> set[str]:
    """Return the names of all fields of these packed tensors."""
    return {name + suffix for name, packing in packed.items() for suffix in packing.suffixes}
