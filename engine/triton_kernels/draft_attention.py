"""Attention of a draft's rows, which reads keys and values where the KV cache has them.

The order of the sums depends on the number of keys, so it is not for exact results.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.triton_kernels.operands import operand_type

PART_KEYS = 256  # the fewest of a program
MOST_PARTS = 16
PROGRAMS = 256  # that keep all multiprocessors of a large GPU busy
WIDEST = 256  # head
BLOCK = 32  # keys whose scores are computed at once


@dataclass(frozen=True)
class HeadNorms:
    """The norms of query and key heads: weights [width], and what is added to them and squares."""

    weights: tuple[Tensor, Tensor]
    epsilons: tuple[float, float]
    offsets: tuple[float, float]


def rotate_and_store(
    joined: Tensor,
    rotation: tuple[Tensor, Tensor],
    norms: HeadNorms | None,
    slots: Tensor,
    memory: tuple[Tensor, Tensor],
    num_heads: int,
) -> Tensor:
    """Return the rotated queries [R, heads, width] of rows; their keys and values are stored.

    One kernel is launched.

    Args:
        joined: parts [P, R, (heads + 2 kv heads) * width], whose sum has queries, keys and values.
        rotation: cosines and sines [R, width].
        norms: applied to queries and keys before they are rotated.
        slots: int64 [R], contiguous.
        memory: keys and values of all slots, [slots, kv heads, width] each.
    """
    from engine.triton_kernels import draft_attention_kernel

    keys, values = memory
    kv_heads, width = keys.shape[1:]
    parts, rows, _ = joined.shape
    queries = torch.empty(rows, num_heads, width, dtype=keys.dtype, device=keys.device)
    cosines, sines = (own.contiguous() for own in rotation)
    own = norms or HeadNorms((joined, joined), (0.0, 0.0), (0.0, 0.0))
    kernel: Any = draft_attention_kernel.rotate_and_store
    kernel[rows, num_heads + 2 * kv_heads](
        joined,
        cosines,
        sines,
        *own.weights,
        slots,
        queries,
        keys,
        values,
        rows,
        parts,
        num_heads,
        kv_heads,
        width,
        own.epsilons[0],
        own.offsets[0],
        own.epsilons[1],
        own.offsets[1],
        HAS_NORMS=norms is not None,
        HALF=power_above(width // 2),
        num_warps=1,
    )
    return queries


def attend(
    queries: Tensor,
    memory: tuple[Tensor, Tensor],
    slots: Tensor,
    mask: Tensor,
    positions: Tensor,
    *,
    scale: float,
    window: int | None = None,
    bound: float | None = None,
) -> Tensor:
    """Return the attention output [R, heads * width] of queries [R, heads, width].

    Two kernels are launched.

    Args:
        memory: keys and values of all slots, [slots, kv heads, width] each.
        slots: int64 [keys], where the keys are; those of the rows come last.
        mask: bool [R, keys], whether a row sees a key. Each row sees itself.
        positions: int64 [keys].
        scale: of the scores.
        window: rows see keys at less than this distance in positions; None: all.
        bound: tanh keeps scores below it; None: there is none.
    """
    from engine.triton_kernels import draft_attention_kernel

    keys, values = memory
    kv_heads, width = keys.shape[1:]
    rows, heads, _ = queries.shape
    group, num_keys = heads // kv_heads, len(slots)
    lanes, tiles, part_keys = _partition(rows * group, kv_heads, width, num_keys)
    parts = -(-num_keys // part_keys)
    assert max(keys.numel(), rows * num_keys, parts * rows * heads * width) < 1 << 31
    tops = torch.empty(2, parts, rows * heads, dtype=torch.float32, device=queries.device)
    sums = torch.empty(parts, rows * heads, width, dtype=torch.float32, device=queries.device)
    out = torch.empty(rows, heads * width, dtype=queries.dtype, device=queries.device)
    kernel: Any = draft_attention_kernel.attend_to_slots
    kernel[tiles, kv_heads, parts](
        queries, keys, values, slots, mask.view(torch.uint8), positions, tops[0], tops[1], sums,
        rows, num_keys, kv_heads, part_keys, scale, window or 0, bound or 1.0,
        GROUP=group,
        HAS_WINDOW=window is not None,
        HAS_BOUND=bound is not None,
        LANES=lanes,
        BLOCK=BLOCK,
        WIDTH=width,
        CHANNELS=power_above(width),
        DOT=operand_type(keys.dtype),
        **options(lanes, width),
    )  # fmt: skip
    _join(tops, sums, out)
    return out


def _partition(lanes: int, kv_heads: int, width: int, num_keys: int) -> tuple[int, int, int]:
    """Return the lanes of a program, the programs for the lanes of a key head, and their keys."""
    sizes = lane_tiles(width)
    tile = next((size for size in sizes if lanes <= size), sizes[-1])
    tiles = -(-lanes // tile)
    wanted = min(max(PROGRAMS // (tiles * kv_heads), 1), MOST_PARTS, -(-num_keys // PART_KEYS))
    return tile, tiles, -(-num_keys // (wanted * BLOCK)) * BLOCK


def _join(tops: Tensor, sums: Tensor, out: Tensor) -> None:
    """Write the attention output, from the tops and totals [2, P, lanes] and sums of the parts."""
    from engine.triton_kernels import draft_attention_kernel

    parts, lanes, width = sums.shape
    kernel: Any = draft_attention_kernel.join_parts
    kernel[(lanes,)](
        tops[0],
        tops[1],
        sums,
        out,
        lanes,
        parts,
        WIDTH=width,
        CHANNELS=power_above(width),
        num_warps=1,
    )


def lane_tiles(width: int) -> tuple[int, ...]:
    """Return the numbers of lanes that a program may have, so that its registers suffice."""
    return (16, 32, 64) if width <= WIDEST // 2 else (16, 32)


def options(lanes: int, width: int) -> dict[str, int]:
    """Return how `attend_to_slots` is compiled for a tile of lanes."""
    is_large = lanes == lane_tiles(width)[-1]
    return {"num_warps": 8 if is_large and width > WIDEST // 4 else 4, "num_stages": 2}


def power_above(count: int) -> int:
    """Return the smallest power of two that is at least `count`."""
    return 1 << (count - 1).bit_length()
