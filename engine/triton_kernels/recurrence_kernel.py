"""Kernels of recurrent layers. `recurrence` launches them.

A program of `walk_rows` has 16 columns of the state of one head, and walks through the rows of one
sequence: the state stays in registers as long as the next row changes it. Its operations and their
order depend on the sizes of the layer only, so a row has the same bits whatever runs beside it.
"""

import triton.language as tl

from engine.triton_kernels.compiler import helper, kernel

LANES = tl.constexpr(16)  # columns of a program, which are together in memory
LOADS, STORES = tl.constexpr(1), tl.constexpr(2)  # what a row does beside its computation


@helper
def _find(
    states: tl.tensor, kept: tl.tensor, number: tl.tensor, DISTANCE: tl.constexpr,
    SIZE: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return where the state with a number is, `DISTANCE` or `SIZE` from the next one."""
    at = states + (-1 - number) * DISTANCE
    if number >= 0:
        at = kept + number * SIZE
    return at


@kernel(aligned=("states", "kept", "out"))
def walk_rows(
    states: tl.tensor, kept: tl.tensor, query: tl.tensor, key: tl.tensor, value: tl.tensor,
    decay: tl.tensor, rate: tl.tensor, out: tl.tensor, rows: tl.tensor, sources: tl.tensor,
    targets: tl.tensor, actions: tl.tensor, starts: tl.tensor, first_item: tl.tensor,
    num_kept: tl.tensor, HEADS: tl.constexpr, KEY_HEADS: tl.constexpr, DEPTH: tl.constexpr,
    WIDTH: tl.constexpr, PART: tl.constexpr, IS_WIDE: tl.constexpr, IS_CORRECTED: tl.constexpr,
) -> None:  # fmt: skip
    """Write the output of the rows of a sequence in 16 columns of a head, and change states.

    Args:
        states: [n, HEADS, WIDTH / 16, DEPTH, 16] float32.
        kept: memory for the states that this launch keeps, `num_kept` for each program.
        query, key: [.., KEY_HEADS, DEPTH] float32.
        value, out: [.., HEADS, WIDTH] float32.
        decay: [.., HEADS], or [.., HEADS, DEPTH] where it IS_WIDE; float32.
        rate: [.., HEADS] float32, used where the rule IS_CORRECTED.
        rows, sources, targets, starts: as in `engine.recurrent.order.Walk`.
        actions: LOADS and STORES of each row, added up.
        first_item: the number of the first of these blocks of 16 columns of all heads.
        PART: the power of two that is not below DEPTH.
    """
    blocks: tl.constexpr = WIDTH // 16
    size: tl.constexpr = DEPTH * 16
    item = first_item + tl.program_id(0)
    head, block = item // blocks, item % blocks
    key_head = head // (HEADS // KEY_HEADS)
    d, column = tl.arange(0, PART), tl.arange(0, LANES)
    is_there = d < DEPTH
    within = d[:, None] * 16 + column[None, :]
    program = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    kept += program.to(tl.int64) * num_kept * size
    states += item.to(tl.int64) * size
    state = tl.zeros((PART, LANES), tl.float32)
    for place in range(tl.load(starts + tl.program_id(1)), tl.load(starts + tl.program_id(1) + 1)):
        row, action = tl.load(rows + place), tl.load(actions + place)
        if action % 2 == LOADS:
            at = _find(states, kept, tl.load(sources + place), HEADS * blocks * size, size)
            state = tl.load(at + within, mask=is_there[:, None], other=0.0)
        own = row * KEY_HEADS + key_head
        k = tl.load(key + own * DEPTH + d, mask=is_there, other=0.0)
        q = tl.load(query + own * DEPTH + d, mask=is_there, other=0.0)
        own = row * HEADS + head
        if IS_WIDE:
            state *= tl.load(decay + own * DEPTH + d, mask=is_there, other=0.0)[:, None]
        else:
            state *= tl.load(decay + own)
        added = tl.load(value + own * WIDTH + block * 16 + column)
        if IS_CORRECTED:
            added = (added - tl.sum(state * k[:, None], 0)) * tl.load(rate + own)
        state += k[:, None] * added[None, :]
        found = tl.sum(state * q[:, None], 0)
        tl.store(out + own * WIDTH + block * 16 + column, found)
        if action >= STORES:
            at = _find(states, kept, tl.load(targets + place), HEADS * blocks * size, size)
            tl.store(at + within, state, mask=is_there[:, None])
            # Other threads of the program may load what this one has stored.
            tl.debug_barrier()


@kernel()
def convolve_rows(
    source: tl.tensor, places: tl.tensor, weight: tl.tensor, bias: tl.tensor, out: tl.tensor,
    channels: tl.tensor, weight_row: tl.tensor, TAPS: tl.constexpr, PART: tl.constexpr,
    IS_ACTIVATED: tl.constexpr,
) -> None:  # fmt: skip
    """Write some channels of the convolution of a row, as `engine.recurrent.steps.convolve` does.

    Args:
        source, out: [.., channels].
        places: [rows, TAPS] int64.
        weight: [TAPS, weight_row] float32; bias: [weight_row] float32.
        PART: channels of a program.
    """
    row = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * PART + tl.arange(0, PART)
    is_there = channel < channels
    found = tl.load(bias + channel, mask=is_there, other=0.0)
    for tap in tl.static_range(TAPS):
        place = source + tl.load(places + row * TAPS + tap) * channels + channel
        factor = tl.load(weight + tap * weight_row + channel, mask=is_there, other=0.0)
        found += factor * tl.load(place, mask=is_there, other=0.0).to(tl.float32)
    if IS_ACTIVATED:
        power = tl.exp(-tl.abs(found))
        found = tl.div_rn(found * tl.where(found < 0, power, 1.0), power + 1.0)
    tl.store(out + row * channels + channel, found.to(out.dtype.element_ty), mask=is_there)
