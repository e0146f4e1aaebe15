"""Compiled attention of the rows of one sequence, in the order of positions.

`engine.model.ordered` says what is computed, and computes the same bits with operations of torch.

A kernel works on lanes: pairs of a row and a query head, up to 64 of one key head. Arrays have the
lane as their last dimension, and operations never mix lanes, so what is computed beside a lane does
not change its bits. A key that a lane does not see has weight 0, which changes no sum.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from engine.compiled.compiler import helper, is_available, kernel
from engine.compiled.filling import in_parts
from engine.compiled.formulas import NOTHING
from engine.compiled.storing import BFLOAT16, FLOAT32, KINDS
from engine.compiled.vectors import (
    LANES,
    ROWS,
    cap,
    copy_bfloat16,
    copy_float16,
    copy_float32,
    sum_products,
    weigh,
)

BLOCK = 64  # positions
_WIDTH = 64  # lanes of a work item
_PRODUCTS = 48  # that take as long as expanding one value of a weight

_u2, _f4 = np.uint16, np.float32
_NOTHING = _f4(NOTHING)


@dataclass(frozen=True)
class Columns:
    """The keys that some rows of a sequence see, by position: numpy arrays.

    Args:
        prefix: the slots of the positions from 0 on, [n] int64.
        low, high: the first and the last position of the prefix that each row sees, [rows] int64.
        others: further slots, [m] int64.
        positions: the position of each of these, [m] int64, ascending.
        visible: which of these each row sees, [rows, m] bool; at most one of each position.
    """

    prefix: Any
    low: Any
    high: Any
    others: Any
    positions: Any
    visible: Any


class _Lanes(NamedTuple):
    """Arrays of the lanes of a work item. Matrices are flat and have 64 lanes in a row."""

    row: Any
    query: Any  # [head dim, 64]
    state: Any  # [3, 64]: the greatest score, the sum of weights, the factor of earlier sums
    sums: Any  # [value dim, 64]: the sums of weighted values


class _Block(NamedTuple):
    """Arrays of the keys of a block of positions."""

    slot: Any
    position: Any
    column: Any  # among `Columns.others`; -1: a key of the prefix
    keys: Any  # [n, head dim], flat
    values: Any  # [n, value dim], flat
    scores: Any  # [n, 64], flat; then weights


def can_attend(query: Tensor) -> bool:
    """Return whether compiled code can compute attention of this device and type here."""
    return query.device.type == "cpu" and query.dtype in KINDS and is_available()


def attend(
    query: Tensor,
    memory: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    columns: Columns,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return the attention output [rows, H, value dim], float32.

    It uses as many threads as torch does for its operations, which changes no bit.

    Args:
        query: [rows, H, head dim].
        memory: keys and values of all slots, [slots, width] each, contiguous.
        shapes: kv heads and dim of keys and of values, which fill the beginning of a slot.
        columns: what the rows see.
        scaling, softcap, sinks: as in `engine.model.attention.attend`.
    """
    rows, heads, depth = query.shape
    (kv_heads, key_depth), (_, value_depth) = shapes
    # Kernels do not check places: with wrong ones they would read and write other memory.
    assert key_depth == depth and heads % kv_heads == 0, (query.shape, shapes)
    assert all(m.shape[1] >= s.numel() for m, s in zip(memory, shapes, strict=True)), shapes
    assert len(columns.low) == len(columns.high) == len(columns.visible) == rows, rows
    for slots in (columns.prefix, columns.others):
        assert not len(slots) or 0 <= slots.min() <= slots.max() < len(memory[0]), len(memory[0])
    assert columns.high.max() < len(columns.prefix) and columns.low.min() >= 0
    assert sinks is None or len(sinks) == heads, heads
    out = torch.empty(rows, heads, value_depth)
    arguments = (
        query.to(torch.float32).contiguous().numpy(),
        out.numpy(),
        tuple(_bits(part) for part in memory),
        tuple(part.shape[1] for part in memory),
        KINDS[memory[0].dtype],
        kv_heads,
        (columns.prefix, columns.low, columns.high),
        (columns.others, columns.positions, columns.visible),
        np.empty(0, _f4) if sinks is None else sinks.to(torch.float32).contiguous().numpy(),
        (_f4(scaling), _f4(softcap or 0)),
    )
    items = kv_heads * -(-rows * (heads // kv_heads) // _WIDTH)
    seen = len(columns.prefix) + len(columns.others)
    products = seen * _WIDTH * (depth + value_depth)
    in_parts(items, products // _PRODUCTS, lambda first, last: _attend(*arguments, first, last))
    return out


def _bits(memory: Tensor) -> tuple[Any, Any]:
    """Return memory as float32 and as the bits of 16-bit floats, flat; one of the two is empty."""
    if memory.dtype == torch.float32:
        return memory.view(-1).numpy(), np.empty(0, _u2)
    return np.empty(0, _f4), memory.view(-1).view(torch.int16).numpy().view(_u2)


@helper
def _copy(
    memory: Any, kind: int, width: int, first: int, slots: Any, count: int,
    out: Any, out_width: int, depth: int,
) -> None:  # fmt: skip
    """Copy `depth` values of each of `count` slots, from the place `first` on, as float32."""
    wide, narrow = memory
    if kind == FLOAT32:
        for key in range(count):
            copy_float32(out, key * out_width, wide, slots[key] * width + first, depth)
    elif kind == BFLOAT16:
        for key in range(count):
            copy_bfloat16(out, key * out_width, narrow, slots[key] * width + first, depth)
    else:
        for key in range(count):
            copy_float16(out, key * out_width, narrow, slots[key] * width + first, depth)


@helper
def _make_lanes(depth: int, value_depth: int) -> Any:
    return _Lanes(
        row=np.empty(_WIDTH, np.int64),
        query=np.empty(depth * _WIDTH, _f4),
        state=np.empty(3 * _WIDTH, _f4),
        sums=np.empty(value_depth * _WIDTH, _f4),
    )


@helper
def _make_block(most: int, depth: int, value_depth: int) -> Any:
    # Zeros, and room for more keys: products of keys and of values are computed four at a time.
    return _Block(
        slot=np.empty(most, np.int64),
        position=np.empty(most, np.int64),
        column=np.empty(most, np.int64),
        keys=np.zeros((most + ROWS) * depth, _f4),
        values=np.zeros(most * value_depth, _f4),
        scores=np.empty((most + ROWS) * _WIDTH, _f4),
    )


@helper
def _begin(lanes: Any, query: Any, sinks: Any, head: int, kv_heads: int, first: int) -> int:
    """Set the arrays of lanes; those beyond the last one repeat it. Return how many are real."""
    rows, heads, depth = query.shape
    group = heads // kv_heads
    count: int = min(_WIDTH, rows * group - first)
    row_of, own_query, state = lanes.row, lanes.query, lanes.state
    for lane in range(_WIDTH):
        number = first + min(lane, count - 1)
        row, own = number // group, head * group + number % group
        row_of[lane] = row
        for d in range(depth):
            own_query[d * _WIDTH + lane] = query[row, own, d]
        state[lane] = sinks[own] if len(sinks) else _NOTHING
        state[_WIDTH + lane] = _f4(1 if len(sinks) else 0)
    lanes.sums[:] = _f4(0)
    return count


@helper
def _end(lanes: Any, out: Any, head: int, kv_heads: int, count: int, first: int) -> None:
    """Write the results of the lanes."""
    group, sums = out.shape[1] // kv_heads, lanes.sums
    for lane in range(count):
        row, own = (first + lane) // group, head * group + (first + lane) % group
        total = lanes.state[_WIDTH + lane]
        for d in range(out.shape[2]):
            out[row, own, d] = sums[d * _WIDTH + lane] / total


@helper
def _choose(lanes: Any, visible: Any, chosen: Any) -> int:
    """Write the columns that some lane sees to `chosen`; return how many these are."""
    count, first, last = 0, lanes.row[0], lanes.row[_WIDTH - 1]
    for column in range(visible.shape[1]):
        is_seen = False
        for row in range(first, last + 1):
            is_seen = is_seen or visible[row, column]
        if is_seen:
            chosen[count] = column
            count += 1
    return count


@helper
def _find(prefix: Any, others: Any, block: Any, first: int, stop: int, chosen: Any, at: int) -> int:
    """List the keys of the positions `first` to `stop` - 1 in a block; return their number.

    `chosen[at:]` are the other columns of this block and of later ones.
    """
    slot, column, place = block.slot, block.column, block.position
    count = 0
    for position in range(first, stop):
        slot[count], column[count], place[count] = prefix[position], -1, position
        count += 1
    slots, positions, _ = others
    edge = (first // BLOCK + 1) * BLOCK
    while at < len(chosen) and positions[chosen[at]] < edge:
        other = chosen[at]
        slot[count], column[count], place[count] = slots[other], other, positions[other]
        count += 1
        at += 1
    return count


@helper
def _hide(lanes: Any, block: Any, count: int, low: Any, high: Any, visible: Any) -> None:
    """Set the scores of keys that a lane does not see to -inf."""
    positions, columns, scores, rows = block.position, block.column, block.scores, lanes.row
    for key in range(count):
        position, column = positions[key], columns[key]
        for lane in range(_WIDTH):
            row = rows[lane]
            if column < 0:
                is_seen = low[row] <= position and position <= high[row]
            else:
                is_seen = visible[row, column]
            if not is_seen:
                scores[key * _WIDTH + lane] = _NOTHING


@helper
def _score(lanes: Any, block: Any, count: int, width: int) -> None:
    """Compute the products of the lanes' queries and the keys of a block."""
    scores, keys, query = block.scores, block.keys, lanes.query
    depth = len(query) // _WIDTH
    for key in range(0, count, ROWS):
        for lane in range(0, width, LANES):
            sum_products(
                scores, key * _WIDTH + lane, _WIDTH,
                keys, key * depth, depth, 1,
                query, lane, _WIDTH, depth,
            )  # fmt: skip


@helper
def _add(lanes: Any, block: Any, count: int, width: int, scale: Any, bound: Any) -> None:
    """Turn scores into weights, and add the values with these weights to the lanes' sums."""
    scores, values, state, sums = block.scores, block.values, lanes.state, lanes.sums
    depth = len(sums) // _WIDTH
    for lane in range(0, width, LANES):
        factor = scale
        if bound > 0:
            cap(scores, lane, _WIDTH, count, scale, bound)
            factor = _f4(1)
        weigh(scores, lane, _WIDTH, count, factor, state, lane, _WIDTH + lane, 2 * _WIDTH + lane)
        for d in range(0, depth, ROWS):
            sum_products(
                sums, d * _WIDTH + lane, _WIDTH,
                values, d, 1, depth,
                scores, lane, _WIDTH, count,
                state, 2 * _WIDTH + lane,
            )  # fmt: skip


@helper
def _run(
    lanes: Any, block: Any, chosen: Any, memory: Any, widths: Any, kind: int, shared: Any,
    others: Any, numbers: Any, head: int, value_depth: int, width: int,
) -> None:  # fmt: skip
    """Add all keys that some lane sees to the lanes' sums, block by block."""
    prefix, low, high = shared
    _, positions, visible = others
    depth, padded = len(lanes.query) // _WIDTH, len(lanes.sums) // _WIDTH
    first, last = lanes.row[0], lanes.row[_WIDTH - 1]
    least, most = low[first], high[first]  # positions of the prefix that some lane sees
    for row in range(first, last + 1):
        least, most = min(least, low[row]), max(most, high[row])
    num_chosen, at = _choose(lanes, visible, chosen), 0
    end = max(most, positions[chosen[num_chosen - 1]]) if num_chosen else most
    for number in range(least // BLOCK, end // BLOCK + 1):
        start, stop = max(number * BLOCK, least), min((number + 1) * BLOCK, most + 1)
        is_whole = True
        for row in range(first, last + 1):
            is_whole = is_whole and low[row] <= start and stop - 1 <= high[row]
        if stop < start:
            start = stop = number * BLOCK
        count = _find(prefix, others, block, start, stop, chosen[:num_chosen], at)
        at += count - (stop - start)
        if count == 0:
            continue
        listed, first_value = block.slot, head * value_depth
        _copy(memory[0], kind, widths[0], head * depth, listed, count, block.keys, depth, depth)
        _copy(
            memory[1], kind, widths[1], first_value, listed, count,
            block.values, padded, value_depth,
        )  # fmt: skip
        _score(lanes, block, count, width)
        if not is_whole or count > stop - start:
            _hide(lanes, block, count, low, high, visible)
        _add(lanes, block, count, width, numbers[0], numbers[1])


@kernel(
    "void(f4[:, :, ::1], f4[:, :, ::1], UniTuple(Tuple((f4[::1], u2[::1])), 2), UniTuple(i8, 2),"
    "i8, i8, UniTuple(i8[::1], 3), Tuple((i8[::1], i8[::1], b1[:, ::1])), f4[::1],"
    "UniTuple(f4, 2), i8, i8)"
)
def _attend(
    query: Any, out: Any, memory: Any, widths: Any, kind: int, kv_heads: int, shared: Any,
    others: Any, sinks: Any, numbers: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """Compute the work items `start` to `stop` - 1: the lanes of a key head, 64 at a time."""
    rows, heads, depth = query.shape
    padded = -(-out.shape[2] // ROWS) * ROWS
    chunks = -(-rows * (heads // kv_heads) // _WIDTH)
    lanes = _make_lanes(depth, padded)
    block = _make_block(BLOCK + len(others[0]), depth, padded)
    chosen = np.empty(len(others[0]), np.int64)
    for item in range(start, stop):
        head, first = item // chunks, item % chunks * _WIDTH
        count = _begin(lanes, query, sinks, head, kv_heads, first)
        width = -(-count // LANES) * LANES
        _run(
            lanes, block, chosen, memory, widths, kind, shared,
            others, numbers, head, out.shape[2], width,
        )  # fmt: skip
        _end(lanes, out, head, kv_heads, count, first)
