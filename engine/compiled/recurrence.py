"""Compiled recurrences: states of a sequence that change from row to row, and short convolutions.

`engine.recurrent.steps` says what is computed, and computes the same bits with operations of torch.

Heads and columns of a state are independent of each other, so 16 columns of one head walk through
all rows before the next ones do: their states stay in the first cache. A product is rounded before
it is added, and sums have a fixed order, so neither threads nor the rows of a walk change a bit.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.compiled import formulas
from engine.compiled.compiler import emitted, is_available, kernel
from engine.compiled.filling import in_parts
from engine.compiled.vectors import LANES, Code, Vector

SUMS = 4  # of the products with every fourth row of a state: they do not wait for each other
STATE = -1  # the number of the first state that is not kept by a walk alone; others are below it
_PRODUCTS = 8  # that take as long as expanding one value of a weight


def can_walk(device: torch.device) -> bool:
    """Return whether compiled code can compute recurrences on this device here."""
    return device.type == "cpu" and is_available()


def walk(
    states: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None],
    order: tuple[Any, Any, Any],
    num_kept: int,
) -> Tensor:
    """Return the output [rows, H, value dim] of rows, each of which changes a state.

    Args:
        states, inputs: those of `engine.recurrent.steps.walk`.
        order: rows, sources and targets of an `engine.recurrent.order.Walk`.
        num_kept: the number of states that the walk keeps.
    """
    query, key, value, decay, rate = inputs
    rows, heads, width = value.shape
    depth = states.shape[3]
    out = torch.zeros(rows, heads, width)
    # Kernels do not check places: with wrong ones they would read and write other memory.
    assert states.shape[1:] == (heads, width // LANES, depth, LANES), states.shape
    assert states.is_contiguous() and states.dtype == torch.float32, states.dtype
    assert query.shape == key.shape == (rows, key.shape[1], depth), (query.shape, key.shape)
    assert depth % SUMS == 0 == width % LANES and heads % key.shape[1] == 0, (depth, width)
    assert decay.shape in ((rows, heads, 1), (rows, heads, depth)), decay.shape
    assert rate is None or rate.shape == (rows, heads), rate
    walked, *places = order
    assert all(len(own) == len(walked) for own in places), len(walked)
    assert walked.min(initial=0) >= 0 and walked.max(initial=-1) < rows, rows
    for own in places:
        assert own.min(initial=STATE) > STATE - len(states) and own.max(initial=STATE) < num_kept
    arguments: Any = (
        states.view(-1).numpy(),
        *(part.contiguous().view(-1).numpy() for part in (query, key, value, decay)),
        (torch.empty(0) if rate is None else rate).contiguous().view(-1).numpy(),
        (heads, key.shape[1], depth, width, decay.shape[2]),
        (*order, num_kept),
        out.view(-1).numpy(),
    )
    items = heads * width // LANES
    products = 8 * len(walked) * depth * LANES
    in_parts(items, products // _PRODUCTS, partial(_walk, *arguments))
    return out


def convolve(
    source: Tensor, places: Any, weight: Tensor, bias: Tensor, *, is_activated: bool
) -> Tensor:
    """Return the convolutions [rows, C] of rows of `source`.

    Args: those of `engine.recurrent.steps.convolve`; `bias` is [C].
    """
    rows, taps = places.shape
    channels = source.shape[1]
    assert weight.shape == (taps, channels) and bias.shape == (channels,), weight.shape
    assert channels % LANES == 0, channels
    assert places.min(initial=0) >= 0 and places.max(initial=0) < len(source), len(source)
    out = torch.empty(rows, channels)
    arguments: Any = (
        *(part.contiguous().view(-1).numpy() for part in (source, weight, bias)),
        np.ascontiguousarray(places * channels).reshape(-1),
        taps,
        is_activated,
        out.view(-1).numpy(),
        channels,
    )
    in_parts(rows, channels * taps, partial(_convolve, *arguments))
    return out


def _emit_step(
    ir: Any,
    builder: Any,
    state: Any,
    at: Any,
    new: Any,
    new_at: Any,
    key: Any,
    query: Any,
    key_at: Any,
    decay: Any,
    decay_at: Any,
    value: Any,
    value_at: Any,
    rate: Any,
    rate_at: Any,
    out: Any,
    count: Any,
    *,
    is_wide: bool,
    is_corrected: bool,
) -> None:
    """Write the code of one row of 16 columns of a head.

    Args:
        is_wide: whether each row of the state has a decay of its own.
        is_corrected: whether the state is asked for the key's value, and what is added is the
            difference, times the rate (the delta rule).
    """
    code = Code(ir, builder)
    zero = Vector(ir, builder, ir.Constant(code.vector, [0.0] * LANES))
    steps = builder.udiv(count, code.number(SUMS))

    def number(memory: Any, place: Any) -> Vector:
        return code.spread(builder.load(builder.gep(memory, [place]), align=4))

    shared = None if is_wide else number(decay, decay_at)

    def decayed(row: Any) -> Vector:
        factor = number(decay, builder.add(decay_at, row)) if shared is None else shared
        return code.load(state, code.place(at, row, code.number(LANES))) * factor

    def rows_of(step: Any) -> list[Any]:
        return [code.place(code.number(own), step, code.number(SUMS)) for own in range(SUMS)]

    added = code.load(value, value_at)
    if is_corrected:
        with code.loop(steps, [zero] * SUMS) as (step, known):
            for own, row in enumerate(rows_of(step)):
                known[own] = known[own] + decayed(row) * number(key, builder.add(key_at, row))
        added = (added - _total(known)) * number(rate, rate_at)
    with code.loop(steps, [zero] * SUMS) as (step, read):
        for own, row in enumerate(rows_of(step)):
            place = builder.add(key_at, row)
            changed = decayed(row) + number(key, place) * added
            code.store(changed, new, code.place(new_at, row, code.number(LANES)))
            read[own] = read[own] + changed * number(query, place)
    code.store(_total(read), out, value_at)


def _total(sums: list[Any]) -> Any:
    return (sums[0] + sums[1]) + (sums[2] + sums[3])


def _step(*, is_wide: bool, is_corrected: bool) -> Callable[..., None]:
    return emitted(partial(_emit_step, is_wide=is_wide, is_corrected=is_corrected))


# ..._step(state, at, new, new_at, key, query, key_at, decay, decay_at, value, value_at, rate,
# rate_at, out, count) computes, of a state of `count` rows and 16 columns at the place `at`:
#     new[i] = state[i] * decay + key[i] * added
#     out = the sum of new[i] * query[i]
# `added` is the value, or (value - the sum of state[i] * decay * key[i]) * rate. Sums are four sums
# of every fourth row, in ascending order, which are added in pairs. `new` may be `state`.
_delta_step = _step(is_wide=False, is_corrected=True)
_wide_delta_step = _step(is_wide=True, is_corrected=True)
_plain_step = _step(is_wide=False, is_corrected=False)


@kernel(
    "void(f4[::1], f4[::1], f4[::1], f4[::1], f4[::1], f4[::1], UniTuple(i8, 5),"
    "Tuple((i8[::1], i8[::1], i8[::1], i8)), f4[::1], i8, i8)"
)
def _walk(
    states: Any, query: Any, key: Any, value: Any, decay: Any, rate: Any, sizes: Any, order: Any,
    out: Any, start: int, stop: int,
) -> None:  # fmt: skip
    """Walk the items `start` to `stop` - 1: 16 columns of a head each."""
    heads, key_heads, depth, width, decays = sizes
    rows, sources, targets, num_kept = order
    blocks, size = width // LANES, depth * LANES
    kept = np.empty(num_kept * size, np.float32)
    for item in range(start, stop):
        head, column = item // blocks, item % blocks * LANES
        for place in range(len(rows)):
            row, source, target = rows[place], sources[place], targets[place]
            state, at = kept, source * size
            if source < 0:
                state, at = states, ((STATE - source) * heads * blocks + item) * size
            new, new_at = kept, target * size
            if target < 0:
                new, new_at = states, ((STATE - target) * heads * blocks + item) * size
            key_at = (row * key_heads + head // (heads // key_heads)) * depth
            rate_at = row * heads + head
            value_at = rate_at * width + column
            if len(rate) == 0:
                _plain_step(
                    state, at, new, new_at, key, query, key_at, decay, rate_at,
                    value, value_at, rate, rate_at, out, depth,
                )  # fmt: skip
            elif decays == 1:
                _delta_step(
                    state, at, new, new_at, key, query, key_at, decay, rate_at,
                    value, value_at, rate, rate_at, out, depth,
                )  # fmt: skip
            else:
                _wide_delta_step(
                    state, at, new, new_at, key, query, key_at, decay, rate_at * depth,
                    value, value_at, rate, rate_at, out, depth,
                )  # fmt: skip


def _emit_convolution(
    ir: Any,
    builder: Any,
    out: Any,
    out_at: Any,
    source: Any,
    places: Any,
    places_at: Any,
    taps: Any,
    weight: Any,
    bias: Any,
    channels: Any,
    *,
    is_activated: bool,
) -> None:
    code = Code(ir, builder)
    with code.loop(builder.udiv(channels, code.number(LANES)), []) as (block, _):
        column = builder.mul(block, code.number(LANES))
        with code.loop(taps, [code.load(bias, column)]) as (tap, found):
            place = builder.load(builder.gep(places, [builder.add(places_at, tap)]))
            own = code.load(weight, code.place(column, tap, channels))
            found[0] = found[0] + own * code.load(source, builder.add(place, column))
        (value,) = found
        if is_activated:
            value = formulas.silu(code, value)
        code.store(value, out, builder.add(out_at, column))


# convolve_row(out, out_at, source, places, places_at, taps, weight, bias, channels) sets, for all
# channels c, out[out_at + c] = bias[c] + the sum over i < taps, in ascending order, of
#     weight[i * channels + c] * source[places[places_at + i] + c]
# and the other one sets it to silu of that. `channels` is a multiple of 16.
_convolve_row = emitted(partial(_emit_convolution, is_activated=False))
_convolve_row_silu = emitted(partial(_emit_convolution, is_activated=True))


@kernel("void(f4[::1], f4[::1], f4[::1], i8[::1], i8, b1, f4[::1], i8, i8, i8)")
def _convolve(
    source: Any, weight: Any, bias: Any, places: Any, taps: int, is_activated: bool, out: Any,
    channels: int, start: int, stop: int,
) -> None:  # fmt: skip
    """Convolve the rows `start` to `stop` - 1."""
    for row in range(start, stop):
        at, first = row * channels, row * taps
        if is_activated:
            _convolve_row_silu(out, at, source, places, first, taps, weight, bias, channels)
        else:
            _convolve_row(out, at, source, places, first, taps, weight, bias, channels)
