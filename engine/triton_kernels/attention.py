"""Attention of the rows of one sequence in the order of positions, on a CUDA device.

`engine.model.ordered` says what is computed and why. Here positions are also taken in chunks of
512: the blocks of a chunk are added up in ascending order, beginning with nothing, and then the
chunks, in ascending order. Chunks lie at fixed positions, so they may be computed at the same time.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from engine.triton_kernels.compiler import can_run

CHUNK = 512  # positions
LANES = 16  # of a program, as in `attention_kernel`
# Sums of weighted values that are held at a time, of all rows, heads and chunks: they limit the
# memory of long contexts. More rows are computed one part after another.
MAX_SUMS = 1 << 26
_EVERYTHING = 2**31 - 1  # the reach of a row that sees all earlier positions


@dataclass(frozen=True)
class Paths:
    """Where the keys that some rows of a sequence see are stored, by position.

    Args:
        positions: the position of each row, [rows] int64. A row sees one key at each position up
            to its own, as far as the reach of the layer allows.
        least, end: every row's position is at least `least` and less than `end`.
        shared: the slots of the positions from 0 on, [n] int64; the same for all rows.
        own: the slots of the positions from `base` on for each row, [rows, m] int64, contiguous;
            None if all are in `shared`.
        base: a multiple of `CHUNK`.
        reach: as in `engine.model.segment.Reach`.
        is_chunk: as there.
    """

    positions: Tensor
    least: int
    end: int
    shared: Tensor
    own: Tensor | None
    base: int
    reach: int | None
    is_chunk: bool

    def first_seen(self) -> int:
        """Return a position before which no row sees anything."""
        if self.reach is None:
            return 0
        if self.is_chunk:
            return self.least // self.reach * self.reach
        return max(self.least - self.reach + 1, 0)

    def select(self, rows: slice) -> "Paths":
        """Return the keys that some of the rows see."""
        own = None if self.own is None else self.own[rows]
        return replace(self, positions=self.positions[rows], own=own)


@dataclass(frozen=True)
class Configuration:
    """How a kernel is compiled: the same for all lengths and all numbers of rows.

    With these figures no register is spilled on GPUs from Ampere to Blackwell.

    Args:
        key_part: values of a key that are multiplied at once, a power of two.
        value_part: values of a program, a power of two. Each program computes all scores.
        num_warps, num_stages: options of Triton: 32 threads each, and steps of the loop that load
            and compute at the same time.
        maxnreg: the most registers of a thread. Without it the assembler takes fewer, so that more
            programs run at a time, and spills some.
    """

    key_part: int
    value_part: int
    num_warps: int
    num_stages: int
    maxnreg: int

    @classmethod
    def of(cls, dim: int, value_dim: int, dtype: torch.dtype) -> "Configuration":
        """Return the configuration for keys and values of these dims and this type."""
        keys, values = _power_of_two(dim), _power_of_two(value_dim)
        if dtype == torch.float32:  # products without tensor cores take many registers
            return cls(min(keys, 32), min(values, 64), num_warps=8, num_stages=1, maxnreg=128)
        if keys > 256:  # more than one part at a time does not fit the shared memory
            return cls(128, 128, num_warps=8, num_stages=2, maxnreg=255)
        return cls(keys, min(values, 128), num_warps=4, num_stages=3, maxnreg=255)


@cache
def can_attend(device: torch.device) -> bool:
    """Return whether the kernels run on a device. The log says once why they do not."""
    return device.type == "cuda" and can_run(
        device, "attention under strict numerics is computed in float64", lambda: _try(device)
    )


def _try(device: torch.device) -> None:
    """Compute the attention of one row to one key."""
    place = torch.zeros(1, dtype=torch.int64, device=device)
    memory, shape = torch.ones(1, 64, dtype=torch.float16, device=device), torch.Size((1, 64))
    attend(
        memory[None],
        (memory, memory),
        (shape, shape),
        Paths(place, 0, 1, place, None, 0, None, False),
        scaling=1.0,
        softcap=None,
        sinks=None,
    )
    torch.cuda.synchronize(device)


def attend(
    query: Tensor,
    memory: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    paths: Paths,
    *,
    scaling: float,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    """Return the attention output [rows, H, value dim], float32.

    Args:
        query: [rows, H, head dim].
        memory: keys and values of all slots, [slots, width] each, contiguous.
        shapes: kv heads and dim of keys and of values, which fill the beginning of a slot.
        paths: what the rows see.
        scaling, softcap, sinks: as in `engine.model.attention.attend`.
    """
    from engine.triton_kernels.attention_kernel import merge_chunks

    _check(query, memory, shapes, paths, sinks)
    query = query if query.stride(2) == 1 else query.contiguous()
    rows, heads, _ = query.shape
    value_dim = shapes[1][1]
    chunks = range(paths.first_seen() // CHUNK, -(-paths.end // CHUNK))
    at_once = max(MAX_SUMS // (len(chunks) * heads * value_dim), 1)
    if at_once < rows:
        options: Any = {"scaling": scaling, "softcap": softcap, "sinks": sinks}
        parts = [slice(first, first + at_once) for first in range(0, rows, at_once)]
        return torch.cat(
            [attend(query[part], memory, shapes, paths.select(part), **options) for part in parts]
        )
    tops, totals = query.new_empty(2, len(chunks), rows, heads, dtype=torch.float32)
    sums = query.new_empty(len(chunks), rows, heads, value_dim, dtype=torch.float32)
    state, out = (tops, totals, sums), torch.empty_like(sums[0])
    with torch.cuda.device(query.device) if query.is_cuda else nullcontext():
        _attend_chunks(query, memory, shapes, paths, chunks, state, scaling, softcap)
        merge_chunks[rows * heads,](
            *state, paths.positions, paths.positions if sinks is None else sinks, out,
            rows, chunks.start, paths.reach or _EVERYTHING, HEADS=heads, VALUE_DIM=value_dim,
            VALUE_BLOCK=_power_of_two(value_dim), CHUNK=CHUNK, IS_CHUNK=paths.is_chunk,
            HAS_SINKS=sinks is not None, num_warps=1, enable_fp_fusion=False,
        )  # fmt: skip
    return out


def _attend_chunks(
    query: Tensor,
    memory: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    paths: Paths,
    chunks: range,
    state: tuple[Tensor, Tensor, Tensor],
    scaling: float,
    softcap: float | None,
) -> None:
    """Write the greatest scores, the sums of weights and the sums of values of all chunks."""
    from engine.triton_kernels.attention_kernel import attend_chunks

    rows, heads, dim = query.shape
    (kv_heads, _), (_, value_dim) = shapes
    group, chosen = heads // kv_heads, Configuration.of(dim, value_dim, query.dtype)
    for slots, span, base, some in _split(paths, rows, group, chunks):
        tiles = len(slots) * -(-span // LANES)
        parts = -(-value_dim // chosen.value_part)
        attend_chunks[tiles, kv_heads * parts, len(some)](
            query, *memory, slots, paths.positions, *state,
            rows, query.stride(0), query.stride(1), slots.stride(0), span, base, some.start,
            chunks.start, paths.reach or _EVERYTHING, scaling, 1.0 if softcap is None else softcap,
            KV_HEADS=kv_heads, GROUP=group, DIM=dim, VALUE_DIM=value_dim,
            KEY_WIDTH=memory[0].shape[1], VALUE_WIDTH=memory[1].shape[1],
            KEY_PART=chosen.key_part, VALUE_PART=chosen.value_part, CHUNK=CHUNK,
            IS_CHUNK=paths.is_chunk, HAS_CAP=softcap is not None, DOT=_dot_type(query),
            TERMS=1 if query.dtype == torch.float32 else 2, num_warps=chosen.num_warps,
            num_stages=chosen.num_stages, maxnreg=chosen.maxnreg, enable_fp_fusion=False,
        )  # fmt: skip


def _check(
    query: Tensor,
    memory: Sequence[Tensor],
    shapes: Sequence[torch.Size],
    paths: Paths,
    sinks: Tensor | None,
) -> None:
    """Check sizes: kernels with wrong ones would read and write other memory."""
    rows, heads, dim = query.shape
    (kv_heads, key_dim), _ = shapes
    assert key_dim == dim and heads % kv_heads == 0, (query.shape, shapes)
    for part, shape in zip(memory, shapes, strict=True):
        assert part.shape[1] >= shape.numel() and part.dtype == query.dtype, (part.shape, shape)
        # Another address would select other code.
        assert part.is_contiguous() and part.data_ptr() % 16 == 0, part.data_ptr()
    assert paths.positions.shape == (rows,) and 0 <= paths.least < paths.end
    end, own = paths.end, paths.own
    if own is not None:
        assert paths.base % CHUNK == 0 and own.stride(1) == 1, (paths.base, own.stride())
        assert len(own) == rows and own.shape[1] >= end - paths.base, (own.shape, end)
        end = min(end, paths.base)
    assert paths.shared.is_contiguous() and len(paths.shared) >= end, len(paths.shared)
    assert sinks is None or sinks.shape == (heads,), sinks


def _split(
    paths: Paths, rows: int, group: int, chunks: range
) -> Iterator[tuple[Tensor, int, int, range]]:
    """Yield the chunks whose slots all rows share, and those of which each row has its own.

    Each has the slots [.., n], how many lanes of a key head share a row of them, the position of
    the first column, and the numbers of the chunks.
    """
    edge = chunks.stop if paths.own is None else min(paths.base // CHUNK, chunks.stop)
    if edge > chunks.start:
        yield paths.shared[None], rows * group, 0, range(chunks.start, edge)
    if paths.own is not None:
        yield paths.own, group, paths.base, range(max(edge, chunks.start), chunks.stop)


def _dot_type(query: Tensor) -> Any:
    """Return Triton's type of products; in its interpreter, 16-bit types are wrong for `tl.dot`."""
    import triton.language as tl

    kinds = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}
    return kinds.get(query.dtype, tl.float32) if query.is_cuda else tl.float32


def _power_of_two(dim: int) -> int:
    """Return the least power of two that is not below a dim, and at least 16."""
    return max(16, 1 << (dim - 1).bit_length())
