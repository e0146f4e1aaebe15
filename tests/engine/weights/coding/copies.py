"""Weights and 4-bit copies of every form, and all decoders of the cells."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import ModuleType
from unittest.mock import patch

import torch
from torch import Tensor

from engine.compiled import cell_lockstep, cell_rows, cells, compiler
from engine.weights.coding.cells import Substitute
from engine.weights.formats import int4, nf4

FORMS = ("int4 32", "int4 64", "int4 128", "nf4 64")


@contextmanager
def _decoding_by(decoder: ModuleType) -> Iterator[None]:
    with patch.object(cells, "decoder", lambda: decoder):
        yield


# Contexts in which weights are decoded in each of the ways that processors need.
DECODERS = (
    partial(_decoding_by, cell_rows),
    partial(_decoding_by, cell_lockstep),
    compiler.switched_off,
)


def empty_copy(form: str, rows: int, columns: int) -> Substitute:
    """Return a copy without values."""
    kind, group = form.split()
    if kind == "int4":
        fields = int4.packed_tensors("", (rows, columns), int(group))
    else:
        fields = nf4.packed_tensors("", (rows, columns))
    pairs, scales = (torch.empty(shape, dtype=dtype) for dtype, shape in fields.values())
    return Substitute(pairs, scales)


def copy_of(weight: Tensor, form: str, importance: Tensor | None = None) -> Substitute:
    """Return the copy that a draft would use."""
    copy = empty_copy(form, *weight.shape)
    quantize = int4.quantize if copy.is_int4 else nf4.quantize
    quantize(weight, copy.pairs, copy.scales, importance)
    return copy


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two weights are equal in every bit, those of NaN too."""
    return torch.equal(one.view(torch.int16), other.view(torch.int16))
