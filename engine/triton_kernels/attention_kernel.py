"""Kernels of attention in the order of positions. `attention` launches them.

A lane is a pair of a row and a query head. A program has 16 lanes of one key head, so that it runs
the same instructions on every GPU, whether the lanes are of many rows with the same keys or of a
single row with its own. Operations never mix lanes.

Arguments of the kernels, beside those of `attention.attend`:
    slots: the slots of the positions from `base` on, rows of `slots_row` int64. `span` lanes of a
        key head share a row.
    positions: [rows] int64.
    tops, totals, sums: for each chunk, row and head from chunk `stored_chunk` on, the greatest
        score, the sum of the weights, and the sums of the weighted values [VALUE_DIM], in float32.
    query_row, query_head: the distances of rows and heads in the query.
    first_chunk: the chunk of the first programs of this launch.
    reach: how many positions a row sees, or the size of the chunks in which it sees (IS_CHUNK).
    KEY_WIDTH, VALUE_WIDTH: of a slot, in which [KV_HEADS, DIM] and [KV_HEADS, VALUE_DIM] are first.
    KEY_PART, VALUE_PART: as in `attention.Configuration`.
    DOT: the type of products; TERMS: how many numbers of it are a weight.
"""

import triton.language as tl

from engine.triton_kernels.compiler import helper, kernel

LANES = tl.constexpr(16)  # of a program
BLOCK = tl.constexpr(64)  # positions whose weights are summed up at once
_NOTHING = tl.constexpr(float("-inf"))
# As in `engine.compiled.formulas`, after Cephes' tanhf.
_SMALL = tl.constexpr(0.625)
_TANH_5 = tl.constexpr(-5.70498873e-3)
_TANH_4 = tl.constexpr(2.06390888e-2)
_TANH_3 = tl.constexpr(-5.37397155e-2)
_TANH_2 = tl.constexpr(0.133314422)
_TANH_1 = tl.constexpr(-0.333332819)


@helper
def _first_seen(position: tl.tensor, reach: tl.tensor, IS_CHUNK: tl.constexpr) -> tl.tensor:
    """Return the first position that a row sees."""
    first = position // reach * reach if IS_CHUNK else position - reach + 1
    return tl.maximum(first, 0)


@helper
def _cap(score: tl.tensor, bound: tl.tensor) -> tl.tensor:
    """Return tanh(score / bound) * bound."""
    x = score / bound
    size = tl.abs(x)
    square = x * x
    near = ((_TANH_5 * square + _TANH_4) * square + _TANH_3) * square + _TANH_2
    near = (near * square + _TANH_1) * square * x + x
    power = tl.exp(size * -2.0)
    far = (1.0 - power) / (1.0 + power)
    return tl.where(size < _SMALL, near, tl.where(x < 0, -far, far)) * bound


@helper
def _score(
    query: tl.tensor, keys: tl.tensor, q: tl.tensor, is_real: tl.tensor, is_needed: tl.tensor,
    DIM: tl.constexpr, KEY_PART: tl.constexpr, DOT: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the products of the lanes' queries and the keys of a block, [16, 64].

    Args:
        query, keys: pointers to the first value of each lane and of each key.
        q: the first `KEY_PART` values of the queries.
    """
    d = tl.arange(0, KEY_PART)[None, :]
    score = tl.zeros((LANES, BLOCK), tl.float32)
    if DIM <= KEY_PART:
        k = tl.load(keys + d, mask=is_needed & (d < DIM), other=0.0)
        score = tl.dot(q.to(DOT), tl.trans(k).to(DOT), score, input_precision="ieee")
    else:
        # A loop that is not unrolled: all parts of the keys together do not fit the registers.
        for place in range(0, DIM, KEY_PART):
            q = tl.load(query + place + d, mask=is_real & (place + d < DIM), other=0.0)
            k = tl.load(keys + place + d, mask=is_needed & (place + d < DIM), other=0.0)
            score = tl.dot(q.to(DOT), tl.trans(k).to(DOT), score, input_precision="ieee")
    return score


@helper
def _add_block(
    top: tl.tensor, total: tl.tensor, added: tl.tensor, score: tl.tensor, is_seen: tl.tensor,
    v: tl.tensor, DOT: tl.constexpr, TERMS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:  # fmt: skip
    """Return the greatest score, the sum of weights and the sums of values with a block's keys.

    Products are of the values' type. If this has 16 bits, a weight is the sum of two such numbers
    (`TERMS`), since one would round it to three digits.
    """
    # A lane that sees nothing of the block keeps its bits; 0 avoids NaN of -inf - -inf.
    is_alive = tl.max(is_seen.to(tl.int32), 1) > 0
    score = tl.where(is_seen, score, _NOTHING)
    peak = tl.where(is_alive, tl.maximum(top, tl.max(score, 1)), 0.0)
    decay, weights = tl.exp(top - peak), tl.exp(score - peak[:, None])
    sums = added * decay[:, None]
    if TERMS == 1:
        sums = tl.dot(weights, v, sums, input_precision="ieee")
    else:
        high = weights.to(v.dtype)
        low = (weights - high.to(tl.float32)).to(v.dtype)
        sums = tl.dot(low.to(DOT), v.to(DOT), sums)
        sums = tl.dot(high.to(DOT), v.to(DOT), sums)
    added = tl.where(is_alive[:, None], sums, added)
    total = tl.where(is_alive, total * decay + tl.sum(weights, 1), total)
    return tl.where(is_alive, peak, top), total, added


@kernel(aligned=("keys", "values", "sums"))
def attend_chunks(
    query: tl.tensor, keys: tl.tensor, values: tl.tensor, slots: tl.tensor, positions: tl.tensor,
    tops: tl.tensor, totals: tl.tensor, sums: tl.tensor, rows: tl.tensor, query_row: tl.tensor,
    query_head: tl.tensor, slots_row: tl.tensor, span: tl.tensor, base: tl.tensor,
    first_chunk: tl.tensor, stored_chunk: tl.tensor, reach: tl.tensor, scaling: tl.tensor,
    bound: tl.tensor, KV_HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    KEY_PART: tl.constexpr, VALUE_PART: tl.constexpr, CHUNK: tl.constexpr,
    IS_CHUNK: tl.constexpr, HAS_CAP: tl.constexpr, DOT: tl.constexpr, TERMS: tl.constexpr,
) -> None:  # fmt: skip
    """Compute the attention of 16 lanes to the positions of one chunk."""
    parts: tl.constexpr = (VALUE_DIM + VALUE_PART - 1) // VALUE_PART
    tiles = tl.cdiv(span, LANES)
    share = tl.program_id(0) // tiles
    within = tl.program_id(0) % tiles * LANES + tl.arange(0, LANES)
    is_real = within < span
    kv_head, part = tl.program_id(1) // parts, tl.program_id(1) % parts
    lane = share * span + within
    row, head = lane // GROUP, kv_head * GROUP + lane % GROUP
    chunk = first_chunk + tl.program_id(2)

    position = tl.load(positions + row, mask=is_real, other=-1).to(tl.int32)
    low = _first_seen(position, reach, IS_CHUNK)
    first, last = tl.min(tl.where(is_real, low, 2147483647), 0), tl.max(position, 0)
    query += row.to(tl.int64)[:, None] * query_row + head[:, None] * query_head
    d = tl.arange(0, KEY_PART)[None, :]
    q = tl.load(query + d, mask=is_real[:, None] & (d < DIM), other=0.0)
    slots += share.to(tl.int64) * slots_row - base
    place = (part * VALUE_PART + tl.arange(0, VALUE_PART))[None, :]
    top = tl.full((LANES,), _NOTHING, tl.float32)
    total = tl.zeros((LANES,), tl.float32)
    added = tl.zeros((LANES, VALUE_PART), tl.float32)
    begin = tl.maximum(chunk * CHUNK, first // BLOCK * BLOCK)
    for start in range(begin, tl.minimum((chunk + 1) * CHUNK, last + 1), BLOCK):
        at = start + tl.arange(0, BLOCK)
        is_needed = (first <= at) & (at <= last)
        slot = tl.load(slots + at, mask=is_needed, other=0)[:, None]
        is_needed = is_needed[:, None]
        own_keys = keys + slot * KEY_WIDTH + kv_head * DIM
        score = _score(query, own_keys, q, is_real[:, None], is_needed, DIM, KEY_PART, DOT)
        score *= scaling
        if HAS_CAP:
            score = _cap(score, bound)
        is_seen = (low[:, None] <= at[None, :]) & (at[None, :] <= position[:, None])
        own_values = values + slot * VALUE_WIDTH + kv_head * VALUE_DIM + place
        v = tl.load(own_values, mask=is_needed & (place < VALUE_DIM), other=0.0)
        top, total, added = _add_block(top, total, added, score, is_seen, v, DOT, TERMS)

    found = ((chunk - stored_chunk).to(tl.int64) * rows + row) * (KV_HEADS * GROUP) + head
    tl.store(tops + found, top, mask=is_real & (part == 0))
    tl.store(totals + found, total, mask=is_real & (part == 0))
    is_stored = is_real[:, None] & (place < VALUE_DIM)
    tl.store(sums + found[:, None] * VALUE_DIM + place, added, mask=is_stored)


@kernel(aligned=("sums", "out"))
def merge_chunks(
    tops: tl.tensor,
    totals: tl.tensor,
    sums: tl.tensor,
    positions: tl.tensor,
    sinks: tl.tensor,
    out: tl.tensor,
    rows: tl.tensor,
    stored_chunk: tl.tensor,
    reach: tl.tensor,
    HEADS: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_BLOCK: tl.constexpr,  # the power of two that is not below VALUE_DIM
    CHUNK: tl.constexpr,
    IS_CHUNK: tl.constexpr,
    HAS_SINKS: tl.constexpr,
) -> None:
    """Write the output of one lane: of its chunks, added up in ascending order."""
    lane = tl.program_id(0)
    position = tl.load(positions + lane // HEADS).to(tl.int32)
    d = tl.arange(0, VALUE_BLOCK)
    added = tl.zeros((VALUE_BLOCK,), tl.float32)
    if HAS_SINKS:
        top, total = tl.load(sinks + lane % HEADS).to(tl.float32), 1.0
    else:
        top, total = _NOTHING, 0.0
    first = _first_seen(position, reach, IS_CHUNK) // CHUNK
    for chunk in range(first, position // CHUNK + 1):
        place = (chunk - stored_chunk).to(tl.int64) * rows * HEADS + lane
        chunk_top = tl.load(tops + place)
        peak = tl.maximum(top, chunk_top)
        decay, share = tl.exp(top - peak), tl.exp(chunk_top - peak)
        summed = tl.load(sums + place * VALUE_DIM + d, mask=d < VALUE_DIM, other=0.0)
        added = added * decay + summed * share
        total = total * decay + tl.load(totals + place) * share
        top = peak
    result = tl.div_rn(added, total + tl.zeros((VALUE_BLOCK,), tl.float32))
    place = out + lane.to(tl.int64) * VALUE_DIM + d
    tl.store(place, result, mask=d < VALUE_DIM)
