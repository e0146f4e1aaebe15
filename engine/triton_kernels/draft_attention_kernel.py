"""Kernels of a draft's attention. `draft_attention` launches them.

A lane is a pair of a row and a query head. Lanes of one key head are in one product.
"""

import triton.language as tl

from engine.triton_kernels.compiler import helper, kernel

_NOTHING = tl.constexpr(float("-inf"))


@helper
def _sum_of_parts(
    joined: tl.tensor, place: tl.tensor, is_there: tl.tensor, size: tl.tensor, num_parts: tl.tensor
) -> tl.tensor:
    total = tl.load(joined + place, mask=is_there, other=0.0).to(tl.float32)
    for part in range(1, num_parts):
        start = part * size
        total += tl.load(joined + start + place, mask=is_there, other=0.0).to(tl.float32)
    return total


@helper
def _normal(
    first: tl.tensor,
    second: tl.tensor,
    weight: tl.tensor,
    channel: tl.tensor,
    is_there: tl.tensor,
    width: tl.tensor,
    epsilon: tl.tensor,
    offset: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """Return the two halves of a head divided by its root mean square, times the weight."""
    squares = tl.sum(first * first, 0) + tl.sum(second * second, 0)
    factor = tl.rsqrt(squares / width + epsilon)
    half = width // 2
    near = tl.load(weight + channel, mask=is_there, other=0.0).to(tl.float32) + offset
    far = tl.load(weight + half + channel, mask=is_there, other=0.0).to(tl.float32) + offset
    return first * factor * near, second * factor * far


@kernel()
def rotate_and_store(
    joined: tl.tensor, cosines: tl.tensor, sines: tl.tensor, query_weight: tl.tensor,
    key_weight: tl.tensor, slots: tl.tensor, queries: tl.tensor, keys: tl.tensor,
    values: tl.tensor, num_rows: tl.tensor, num_parts: tl.tensor, num_heads: tl.tensor,
    num_kv_heads: tl.tensor, width: tl.tensor, query_epsilon: tl.tensor, query_offset: tl.tensor,
    key_epsilon: tl.tensor, key_offset: tl.tensor, HAS_NORMS: tl.constexpr, HALF: tl.constexpr,
) -> None:  # fmt: skip
    """Normalize and rotate the queries and keys of a row, and store its keys and values.

    Args:
        joined: [num_parts, num_rows, num_heads + 2 * num_kv_heads, width], whose sum has the
            queries, keys and values.
        cosines, sines: [num_rows, width].
        query_weight, key_weight: [width], of the norms of heads.
        slots: int64 [num_rows], where the keys and values go.
        queries: [num_rows, num_heads, width].
        keys, values: [slots, num_kv_heads, width].
    """
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    channel = tl.arange(0, HALF)
    half = width // 2
    is_there = channel < half
    all_heads = num_heads + 2 * num_kv_heads
    size = num_rows.to(tl.int64) * all_heads * width
    place = (row * all_heads + head) * width + channel
    first = _sum_of_parts(joined, place, is_there, size, num_parts)
    second = _sum_of_parts(joined, place + half, is_there, size, num_parts)
    slot = tl.load(slots + row)
    if head < num_heads + num_kv_heads:
        is_query = head < num_heads
        if HAS_NORMS:
            if is_query:
                weight, epsilon, offset = query_weight, query_epsilon, query_offset
            else:
                weight, epsilon, offset = key_weight, key_epsilon, key_offset
            first, second = _normal(
                first, second, weight, channel, is_there, width, epsilon, offset
            )
        place = row * width + channel
        near = tl.load(cosines + place, mask=is_there, other=0.0).to(tl.float32)
        far = tl.load(cosines + place + half, mask=is_there, other=0.0).to(tl.float32)
        turned = first * near
        turned -= second * tl.load(sines + place, mask=is_there, other=0.0).to(tl.float32)
        second = second * far
        second += first * tl.load(sines + place + half, mask=is_there, other=0.0).to(tl.float32)
        if is_query:
            out = queries + (row * num_heads + head) * width + channel
        else:
            out = keys + (slot * num_kv_heads + head - num_heads) * width + channel
        tl.store(out, turned.to(queries.dtype.element_ty), mask=is_there)
        tl.store(out + half, second.to(queries.dtype.element_ty), mask=is_there)
    else:
        kv_head = head - num_heads - num_kv_heads
        out = values + (slot * num_kv_heads + kv_head) * width + channel
        tl.store(out, first.to(values.dtype.element_ty), mask=is_there)
        tl.store(out + half, second.to(values.dtype.element_ty), mask=is_there)


@helper
def _cap(scores: tl.tensor, bound: tl.tensor) -> tl.tensor:
    """Return tanh(scores / bound) * bound."""
    power = tl.exp(scores * (-2.0 / bound))
    return (1.0 - power) / (1.0 + power) * bound


@helper
def _seen(
    row: tl.tensor, key: tl.tensor, is_lane: tl.tensor, is_key: tl.tensor, mask: tl.tensor,
    positions: tl.tensor, own: tl.tensor, num_keys: tl.tensor, window: tl.tensor,
    HAS_WINDOW: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return which keys the rows, at positions `own`, see."""
    place = row[:, None] * num_keys + key[None, :]
    seen = tl.load(mask + place, mask=is_lane[:, None] & is_key[None, :], other=0) != 0
    if HAS_WINDOW:
        position = tl.load(positions + key, mask=is_key, other=0)
        seen = seen & (own[:, None] - position[None, :] < window)
    return seen


@kernel(aligned=("queries", "keys", "values"))
def attend_to_slots(
    queries: tl.tensor, keys: tl.tensor, values: tl.tensor, slots: tl.tensor, mask: tl.tensor,
    positions: tl.tensor, tops: tl.tensor, totals: tl.tensor, sums: tl.tensor,
    num_rows: tl.tensor, num_keys: tl.tensor, num_kv_heads: tl.tensor, part_keys: tl.tensor,
    scale: tl.tensor, window: tl.tensor, bound: tl.tensor, GROUP: tl.constexpr,
    HAS_WINDOW: tl.constexpr, HAS_BOUND: tl.constexpr, LANES: tl.constexpr, BLOCK: tl.constexpr,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, DOT: tl.constexpr,
) -> None:  # fmt: skip
    """Write the unnormalized attention of lanes to a part of the keys.

    Args:
        queries: [num_rows, num_kv_heads, GROUP, WIDTH].
        keys, values: [slots, num_kv_heads, WIDTH].
        slots, positions: int64 [num_keys], of the keys; the last ones are of the rows.
        mask: uint8 [num_rows, num_keys], whether a row sees a key.
        tops, totals: float32 [parts, num_rows, heads]: the greatest score, and the sum of weights.
        sums: float32 [parts, num_rows, heads, WIDTH]: the sums of the weighted values.
        window, bound: as `draft_attention.attend` takes them.
        BLOCK, CHANNELS: keys at once, and WIDTH filled up to a power of two.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    kv_head = tl.program_id(1)
    part = tl.program_id(2)
    channel = tl.arange(0, CHANNELS)
    row, is_channel = lane // GROUP, channel < WIDTH
    is_lane = row < num_rows
    head = (row * num_kv_heads + kv_head) * GROUP + lane % GROUP
    place = head[:, None] * WIDTH + channel[None, :]
    is_there = is_lane[:, None] & is_channel[None, :]
    query = tl.load(queries + place, mask=is_there, other=0.0).to(DOT)
    own = tl.load(positions + (num_keys - num_rows) + row, mask=is_lane, other=0)
    top, total = tl.full((LANES,), _NOTHING, tl.float32), tl.zeros((LANES,), tl.float32)
    sum_ = tl.zeros((LANES, CHANNELS), tl.float32)
    last = tl.minimum((part + 1) * part_keys, num_keys)
    for begin in range(part * part_keys, last, BLOCK):
        key = begin + tl.arange(0, BLOCK)
        is_key = key < last
        # Numbers of 64 bits would take the registers of the values themselves.
        slot = tl.load(slots + key, mask=is_key, other=0).to(tl.int32)
        stored = (slot * num_kv_heads + kv_head)[:, None] * WIDTH + channel[None, :]
        is_stored = is_key[:, None] & is_channel[None, :]
        block = tl.load(keys + stored, mask=is_stored, other=0.0).to(DOT)
        scores = tl.dot(query, tl.trans(block)) * scale
        if HAS_BOUND:
            scores = _cap(scores, bound)
        seen = _seen(row, key, is_lane, is_key, mask, positions, own, num_keys, window, HAS_WINDOW)
        scores = tl.where(seen, scores, _NOTHING)
        greatest = tl.maximum(top, tl.max(scores, 1))
        # Without any key so far, -inf - -inf would be NaN.
        base = tl.where(greatest == _NOTHING, 0.0, greatest)
        share = tl.exp(top - base)
        weights = tl.exp(scores - base[:, None])
        total = total * share + tl.sum(weights, 1)
        block = tl.load(values + stored, mask=is_stored, other=0.0).to(DOT)
        sum_ = tl.dot(weights.to(values.dtype.element_ty).to(DOT), block, sum_ * share[:, None])
        top = greatest
    place = part * num_rows * num_kv_heads * GROUP + head
    tl.store(tops + place, top, mask=is_lane)
    tl.store(totals + place, total, mask=is_lane)
    tl.store(sums + place[:, None] * WIDTH + channel[None, :], sum_, mask=is_there)


@kernel()
def join_parts(
    tops: tl.tensor,
    totals: tl.tensor,
    sums: tl.tensor,
    out: tl.tensor,
    lanes: tl.tensor,
    num_parts: tl.tensor,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
) -> None:
    """Write the attention [lanes, WIDTH] of lanes, from what `attend_to_slots` wrote."""
    lane = tl.program_id(0).to(tl.int64)
    channel = tl.arange(0, CHANNELS)
    is_there = channel < WIDTH
    top = tl.load(tops + lane)
    for part in range(1, num_parts):
        top = tl.maximum(top, tl.load(tops + part * lanes.to(tl.int64) + lane))
    total = 0.0
    sum_ = tl.zeros((CHANNELS,), tl.float32)
    for part in range(num_parts):
        place = part * lanes.to(tl.int64) + lane
        share = tl.exp(tl.load(tops + place) - top)
        total += share * tl.load(totals + place)
        sum_ += share * tl.load(sums + place * WIDTH + channel, mask=is_there, other=0.0)
    tl.store(out + lane * WIDTH + channel, (sum_ / total).to(out.dtype.element_ty), mask=is_there)
