"""Compiled encoding of weights as indices into the cells of their 4-bit codes.

`engine.weights.coding.cells` defines the code, and has operations of torch with the same bits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from engine.compiled.cell_layout import (
    SEGMENT,
    check_group,
    scale_by_table,
    scale_of_int4,
    stream_bytes,
    usable,
)
from engine.compiled.cell_packing import encode_group
from engine.compiled.cell_vectors import LANES, WIDEST
from engine.compiled.compiler import kernel
from engine.compiled.filling import in_parts

_ESCAPE_BYTES = 6  # of the place and the bits of a weight that has no index
_BEYOND = 8  # bytes after the last one that may be written
_u1, _u2, _u4, _u8 = np.uint8, np.uint16, np.uint32, np.uint64


class Substitute(NamedTuple):
    """A 4-bit copy of a weight in the order of rows, in numpy arrays.

    Args:
        pairs: the codes, uint8 [rows, columns / 2], the first of two in the upper half of a byte.
        scales, ends, is_int4: as those of `cells.Copy`.
    """

    pairs: Any
    scales: Any
    ends: Any
    is_int4: bool


class Encoded(NamedTuple):
    """Encoded weights, in numpy arrays.

    Args:
        stream: the indices of all segments, and the padding; uint8.
        starts: the byte at which each segment begins, uint32 [rows, segments].
        places, values: of all escapes: the number of the weight (uint32) and its bits (uint16).
    """

    stream: Any
    starts: Any
    places: Any
    values: Any


class _Part(NamedTuple):
    """The stream and the escapes of some rows."""

    stream: Any
    places: Any
    values: Any


def encode(substitute: Substitute, weights: Any, most: int) -> Encoded | None:
    """Return encoded weights, or None if they have more than `most` bytes.

    Args:
        weights: the bits of bfloat16, uint16 [rows, columns].
    """
    _check(substitute, weights)
    function = _encode_int4 if substitute.is_int4 else _encode_by_table
    rows, columns = weights.shape
    sizes = np.empty((rows, -(-columns // SEGMENT)), np.uint32)
    most_escapes = max(most, 0) // _ESCAPE_BYTES
    parts: dict[int, _Part] = {}

    def work(first: int, last: int) -> None:
        escapes = sum(len(part.places) for part in list(parts.values()))
        if escapes > most_escapes:  # as a useless copy gives: they would take much memory
            return
        count = (last - first) * columns
        stream = np.empty(count * WIDEST // 8 + sizes[first:last].size + _BEYOND, np.uint8)
        room = min(count, most_escapes + 1)
        places, values = np.empty(room, np.uint32), np.empty(room, np.uint16)
        used = np.zeros(2, np.int64)
        function(*substitute[:3], weights, first, last, stream, sizes, places, values, used)
        parts[first] = _Part(stream[: used[0]], places[: used[1]], values[: used[1]])

    in_parts(rows, columns, work, is_weight=True)
    found = [parts[first] for first in sorted(parts)]
    nbytes = stream_bytes(sum(len(part.stream) for part in found))
    escapes = sum(len(part.places) for part in found)
    if nbytes + sizes.nbytes + _ESCAPE_BYTES * escapes > most:
        return None
    stops = np.cumsum(sizes.reshape(-1), dtype=np.int64)
    starts = (stops - sizes.reshape(-1)).astype(np.uint32).reshape(sizes.shape)
    stream, end = np.zeros(nbytes, np.uint8), 0
    for part in found:
        stream[end : end + len(part.stream)] = part.stream
        end += len(part.stream)
    places = np.concatenate([part.places for part in found])
    return Encoded(stream, starts, places, np.concatenate([part.values for part in found]))


def _check(substitute: Substitute, weights: Any) -> None:
    """Check shapes, because kernels do not check places."""
    rows, half = substitute.pairs.shape
    groups, others = substitute.scales.shape[:: 1 if substitute.is_int4 else -1]
    assert weights.shape == (rows, 2 * half), (weights.shape, rows, half)
    assert others == rows and groups and half % groups == 0, (substitute.scales.shape, rows)
    check_group(2 * half // groups)
    assert len(substitute.ends) == 2 * LANES


def _make_encoder(find_scale: Callable[..., Any]) -> Any:
    def encode_rows(
        pairs: Any,
        scales: Any,
        ends: Any,
        weights: Any,
        first: int,
        last: int,
        stream: Any,
        sizes: Any,
        places: Any,
        values: Any,
        used: Any,
    ) -> None:
        columns = weights.shape[1]
        size = columns // (scales.size // len(pairs))
        flat_pairs, flat_weights = pairs.reshape(-1), weights.reshape(-1)
        own, state = np.empty(2, np.uint32), np.zeros(3, np.uint64)
        missing = np.empty(SEGMENT // LANES, np.uint16)
        escapes = _u8(0)
        for row in range(first, last):
            for start in range(0, columns, SEGMENT):
                begun, end = state[0], min(start + SEGMENT, columns)
                for begin in range(start, end, size):
                    found = find_scale(scales, row, begin // size)
                    own[0], own[1] = usable(found[0], found[1])
                    at, runs, run = row * columns + begin, size // LANES, (begin - start) // LANES
                    encode_group(
                        flat_pairs,
                        at // 2,
                        flat_weights,
                        at,
                        runs,
                        ends,
                        own,
                        stream,
                        state,
                        missing,
                        run,
                    )
                state[0] += _u8(state[2] > _u8(0))
                state[1], state[2] = _u8(0), _u8(0)
                sizes[row, start // SEGMENT] = _u4(state[0] - begun)
                for run in range(_u8((end - start) // LANES)):
                    lanes, lane = missing[run], _u8(0)
                    while lanes:
                        if lanes & _u2(1) and escapes < _u8(len(places)):
                            place = _u8(row * columns + start) + run * _u8(LANES) + lane
                            places[escapes] = _u4(place)
                            values[escapes] = flat_weights[place]
                            escapes += _u8(1)
                        lanes, lane = _u2(lanes >> _u2(1)), lane + _u8(1)
        used[0], used[1] = np.int64(state[0]), np.int64(escapes)

    return encode_rows


_ENCODE = (
    "void(u1[:, ::1], u4[:, ::1], f4[::1], u2[:, ::1], i8, i8, u1[::1], u4[:, ::1], u4[::1], "
    "u2[::1], i8[::1])"
)
_encode_int4 = kernel(_ENCODE, "encode_cells_int4")(_make_encoder(scale_of_int4))
_encode_by_table = kernel(_ENCODE, "encode_cells_by_table")(_make_encoder(scale_by_table))
