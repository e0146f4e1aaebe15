"""Kernels of products with int4 weights. `int4_product` launches them.

A byte of a weight has the codes of two inputs that follow each other. The sum over the inputs is
taken for the first and the second of each pair apart, so codes are not moved between threads. The
weight is the left operand, which tensor cores take in tiles of 16 or 64 outputs; the rows are few.
"""

import triton.language as tl

from engine.triton_kernels.compiler import helper, kernel

_TANH_FACTOR = tl.constexpr(1.5957691216057308)  # 2 * sqrt(2 / pi)
_TANH_CUBE = tl.constexpr(0.044715)


@helper
def _sigmoid(value: tl.tensor) -> tl.tensor:
    return 1.0 / (1.0 + tl.exp(-value))


@helper
def _activated(value: tl.tensor, GATE: tl.constexpr) -> tl.tensor:
    """Return silu(value) for gate 1, and the gelu with tanh for gate 2."""
    inner = value if GATE == 1 else _TANH_FACTOR * (value + _TANH_CUBE * value * value * value)
    return value * _sigmoid(inner)  # (1 + tanh(x)) / 2 = sigmoid(2 x)


@helper
def _weights(
    codes: tl.tensor, scale: tl.tensor, zero: tl.tensor, COLUMNS: tl.constexpr, DOT: tl.constexpr
) -> tl.tensor:
    """Return the weights [outputs, inputs] of codes [outputs, groups, inputs of a group]."""
    dense = (codes.to(tl.float32) - 8.0) * scale[:, :, None] + zero[:, :, None]
    return dense.reshape(codes.shape[0], COLUMNS).to(tl.bfloat16).to(DOT)


@helper
def _load_inputs(
    rows: tl.tensor, row: tl.tensor, is_row: tl.tensor, block: tl.tensor, inputs: tl.tensor,
    INPUTS: tl.constexpr, DOT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:  # fmt: skip
    """Return the first and the second input of each pair of a block, [pairs, rows].

    Args:
        row, is_row: the numbers of rows, and whether each is read, [rows, 1].
    """
    column = block * INPUTS + tl.arange(0, INPUTS)
    place = row.to(tl.int64)[:, None] * inputs + column[None, :]
    values = tl.load(rows + place, mask=is_row & (column[None, :] < inputs), other=0.0)
    values = values.to(tl.bfloat16).to(DOT).reshape(row.shape[0], INPUTS // 2, 2)
    firsts, seconds = tl.split(values)
    return tl.trans(firsts), tl.trans(seconds)


@helper
def _add_products(
    sums: tl.tensor, firsts: tl.tensor, seconds: tl.tensor, output: tl.tensor, pair: tl.tensor,
    group: tl.tensor, pairs: tl.tensor, scales: tl.tensor, outputs: tl.tensor, groups: tl.tensor,
    GROUP: tl.constexpr, INPUTS: tl.constexpr, DOT: tl.constexpr,
) -> tl.tensor:  # fmt: skip
    """Return the sums [outputs, rows] plus the products of a block of weights and inputs.

    Args:
        firsts, seconds: the first and the second input of each pair, [pairs, rows].
        output, pair, group: the numbers of the weight's outputs, pairs of inputs, and groups.
    """
    HALF: tl.constexpr = INPUTS // 2
    is_output = output[:, None] < outputs
    place = output.to(tl.int64)[:, None] * (groups * (GROUP // 2)) + pair[None, :]
    is_weight = is_output & (pair[None, :] < groups * (GROUP // 2))
    both = tl.load(pairs + place, mask=is_weight, other=0)
    both = both.reshape(output.shape[0], INPUTS // GROUP, GROUP // 2)
    place = group.to(tl.int64)[None, :] * outputs + output[:, None]
    # Scale and zero are two numbers of 16 bits, the upper halves of float32.
    fields = tl.load(scales + place, mask=is_output & (group[None, :] < groups), other=0)
    scale = (fields << 16).to(tl.float32, bitcast=True)
    zero = (fields & -65536).to(tl.float32, bitcast=True)
    sums = tl.dot(_weights(both >> 4, scale, zero, HALF, DOT), firsts, sums)
    return tl.dot(_weights(both & 15, scale, zero, HALF, DOT), seconds, sums)


@kernel(aligned=("rows", "pairs", "scales", "out"))
def multiply_int4(
    rows: tl.tensor, pairs: tl.tensor, scales: tl.tensor, bias: tl.tensor, out: tl.tensor,
    num_rows: tl.tensor, outputs: tl.tensor, groups: tl.tensor, part_blocks: tl.tensor,
    GROUP: tl.constexpr, HAS_BIAS: tl.constexpr, GATE: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, DOT: tl.constexpr,
) -> None:  # fmt: skip
    """Write the product of rows and a weight, or a part of its sum.

    Args:
        rows: [num_rows, groups * GROUP].
        pairs: uint8 [outputs, groups * GROUP / 2], the first code of a byte in its upper half.
        scales: int32 [groups, outputs], scale and zero in bfloat16, the scale in the lower half.
        bias: [outputs]; it is added to the first part.
        out: [parts, num_rows, outputs]; half of the outputs if there is a gate.
        part_blocks: blocks of INPUTS that a part sums up.
        GATE: 0: the output is the product. 1, 2: the first half of the product, through silu or
            the gelu with tanh, times the second half.
    """
    width = outputs // 2 if GATE else outputs
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    part = tl.program_id(2)
    inputs = groups * GROUP
    is_row = row[:, None] < num_rows
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    if GATE:
        others = tl.zeros((OUTPUTS, ROWS), tl.float32)
    last = tl.minimum((part + 1) * part_blocks, tl.cdiv(inputs, INPUTS))
    for block in range(part * part_blocks, last):
        firsts, seconds = _load_inputs(rows, row, is_row, block, inputs, INPUTS, DOT)
        pair = block * (INPUTS // 2) + tl.arange(0, INPUTS // 2)
        group = block * (INPUTS // GROUP) + tl.arange(0, INPUTS // GROUP)
        sums = _add_products(
            sums, firsts, seconds, output, pair, group,
            pairs, scales, outputs, groups, GROUP, INPUTS, DOT,
        )  # fmt: skip
        if GATE:
            others = _add_products(
                others, firsts, seconds, output + width, pair, group,
                pairs, scales, outputs, groups, GROUP, INPUTS, DOT,
            )  # fmt: skip
    is_output = output < width
    if HAS_BIAS:
        is_added = is_output & (part == 0)
        added = tl.load(bias + output, mask=is_added, other=0.0).to(tl.float32)
        sums += added[:, None]
        if GATE:
            added = tl.load(bias + width + output, mask=is_added, other=0.0).to(tl.float32)
            others += added[:, None]
    if GATE:
        sums = _activated(sums, GATE) * others
    row_place = (part * num_rows + row).to(tl.int64) * width
    place = out + row_place[:, None] + output[None, :]
    found = tl.trans(sums).to(out.dtype.element_ty)
    tl.store(place, found, mask=is_row & is_output[None, :])


@kernel(aligned=("rows", "pairs", "scales", "out"))
def multiply_int4_of_experts(
    rows: tl.tensor, pairs: tl.tensor, scales: tl.tensor, bias: tl.tensor, out: tl.tensor,
    experts: tl.tensor, places: tl.tensor, row_places: tl.tensor, outputs: tl.tensor,
    groups: tl.tensor, GROUP: tl.constexpr, HAS_BIAS: tl.constexpr, ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr, INPUTS: tl.constexpr, DOT: tl.constexpr,
) -> None:  # fmt: skip
    """Write the products of rows with the weights of the experts that they were given to.

    A program multiplies a block of places with one expert.

    Args:
        rows: [num_rows, groups * GROUP].
        pairs, scales, bias: those of `multiply_int4`, of all experts after each other.
        out: [num_places, outputs].
        experts: int32 [blocks], the expert of each block; -1: the block has no places.
        places: int32 [blocks, ROWS], the rows of `out` that are written; -1: none.
        row_places: how many rows of `out` after each other have the same row of `rows`.
    """
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    block_number = tl.program_id(1)
    expert = tl.load(experts + block_number).to(tl.int64)
    if expert >= 0:
        place = tl.load(places + block_number * ROWS + tl.arange(0, ROWS))
        is_row = (place >= 0)[:, None]
        row = place // row_places
        inputs = groups * GROUP
        pairs += expert * outputs * (groups * (GROUP // 2))
        scales += expert * groups * outputs
        sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
        for block in range(tl.cdiv(inputs, INPUTS)):
            firsts, seconds = _load_inputs(rows, row, is_row, block, inputs, INPUTS, DOT)
            pair = block * (INPUTS // 2) + tl.arange(0, INPUTS // 2)
            group = block * (INPUTS // GROUP) + tl.arange(0, INPUTS // GROUP)
            sums = _add_products(
                sums, firsts, seconds, output, pair, group,
                pairs, scales, outputs, groups, GROUP, INPUTS, DOT,
            )  # fmt: skip
        is_output = output < outputs
        if HAS_BIAS:
            added = tl.load(bias + expert * outputs + output, mask=is_output, other=0.0)
            sums += added.to(tl.float32)[:, None]
        at = out + place.to(tl.int64)[:, None] * outputs + output[None, :]
        found = tl.trans(sums).to(out.dtype.element_ty)
        tl.store(at, found, mask=is_row & is_output[None, :])


@kernel(aligned=("parts", "out"))
def add_parts(
    parts: tl.tensor, out: tl.tensor, size: tl.tensor, num_parts: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Write the sums [size] of parts [num_parts, size], each in the order of the parts."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    is_there = at < size
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(num_parts):
        total += tl.load(parts + part * size.to(tl.int64) + at, mask=is_there, other=0.0)
    tl.store(out + at, total.to(out.dtype.element_ty), mask=is_there)
