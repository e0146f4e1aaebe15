"""Compiled decoding of weights that travel as indices into the cells of their 4-bit codes.

`engine.weights.coding.cells` defines the code, and has operations of torch with the same bits.
"""

from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from engine.compiled import cell_lockstep, cell_rows
from engine.compiled.cell_layout import PADDING, SEGMENT, check_group
from engine.compiled.cell_vectors import LANES
from engine.compiled.compiler import has_feature
from engine.compiled.filling import in_parts


class Copy(NamedTuple):
    """A 4-bit copy of a weight as a kernel keeps it, in numpy arrays.

    A code is in the half of the byte `places[row] + column * steps[row]` that is `shifts[row]` bits
    up. If `steps` are 0, codes are in the order of rows: in the byte `places[row] + column / 2`,
    the first of two in the upper half.

    Args:
        memory: the codes, uint8, flat.
        places: int64 [rows].
        steps: int64 [rows].
        shifts: 0 or 4, uint8 [rows].
        scales: the bits of scale and zero. Int4: uint32 [groups, rows], two values of bfloat16, the
            scale in the lower half. By a table: uint32 [rows, groups], a value of float32.
        ends: the ends of the cells in steps, float32 [32]: 16 lower ones, then 16 upper ones.
        is_int4: whether the cells are those of int4, whose ends need no table.
    """

    memory: Any
    places: Any
    steps: Any
    shifts: Any
    scales: Any
    ends: Any
    is_int4: bool


def decode(copy: Copy, first: int, stream: Any, starts: Any, out: Any) -> None:
    """Fill weights, of which escapes get any value, with the weights of a stream.

    Args:
        first: the row of the copy that belongs to the first row of the weight.
        stream: uint8, with `PADDING` bytes after the last index.
        starts: uint32 [rows, segments], the byte at which the indices of a segment begin.
        out: uint16 [rows, columns].
    """
    _check(copy, first, stream, starts, out)
    own = decoder()
    function = own.decode_int4 if copy.is_int4 else own.decode_by_table

    def work(start: int, stop: int) -> None:
        rows = start * LANES, min(stop * LANES, len(out))
        function(*copy[:6], first, stream, starts, *rows, out)

    in_parts(-(-len(out) // LANES), LANES * out.shape[1], work, is_weight=True)


def decoder() -> ModuleType:
    """Return the decoder that is faster on this processor; both give the same bits."""
    return cell_rows if has_feature("avx512bw") else cell_lockstep


def _check(copy: Copy, first: int, stream: Any, starts: Any, out: Any) -> None:
    """Check shapes and places, because kernels do not: with wrong ones they read other memory."""
    rows, columns = out.shape
    groups, height = copy.scales.shape[:: 1 if copy.is_int4 else -1]
    own = slice(first, first + rows)
    places, steps = copy.places[own], copy.steps[own]
    assert len(places) == len(steps) == len(copy.shifts[own]) == rows, (first, rows)
    assert height >= first + rows and groups and columns % groups == 0, (copy.scales.shape, rows)
    check_group(columns // groups)
    last = places + np.where(steps == 0, columns // 2 - 1, (columns - 1) * steps)
    assert places.min() >= 0 and last.max() < len(copy.memory), "codes lie beyond the copy"
    assert starts.shape == (rows, -(-columns // SEGMENT)), starts.shape
    assert len(stream) >= PADDING and len(copy.ends) == 2 * LANES
