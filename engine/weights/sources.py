"""How one tensor of a model is made from the tensors of its checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from engine.weights.layout import Fields
from engine.weights.safetensors import Checkpoint, StoredTensor

Expert = tuple[int, slice]  # one expert's rows in a fused tensor [experts, rows, columns]


@dataclass(frozen=True)
class Source:
    """Makes one tensor of a model.

    Args:
        shape: The shape of the dense tensor.
        fill: Write the tensor into one dense argument or, where the tensor stays packed, into as
            many as there are `packed` fields. Threads call it at the same time.
        parts: The stored tensors that it is made from. Messages name the first.
        packed: The fields in which the tensor travels; empty if it travels dense.
        experts: Return the source of some entries of the first dimension, to be read alone. None
            where only the whole can be made.
        is_plain: Whether it is the one stored tensor in `parts`, but for the dtype.
    """

    shape: tuple[int, ...]
    fill: Callable[..., None]
    parts: tuple[StoredTensor, ...] = ()
    packed: Fields = field(default_factory=dict)
    experts: Callable[[range], "Source"] | None = None
    is_plain: bool = False


def plain(checkpoint: Checkpoint, stored: StoredTensor) -> Source:
    """Return the source of a tensor that is stored as it is."""
    return Source(
        shape=stored.shape,
        fill=partial(_copy, checkpoint, stored),
        parts=(stored,),
        experts=lambda experts: plain(checkpoint, stored.part(experts)),
        is_plain=True,
    )


def merged(shape: tuple[int, ...], pieces: Sequence[tuple[Expert, Source]]) -> Source:
    """Return the source of a fused tensor whose experts are stored one by one."""

    def fill(out: Tensor) -> None:
        for place, piece in pieces:
            piece.fill(out[place])

    def some(experts: range) -> Source:
        own = [((e - experts.start, rows), piece) for (e, rows), piece in pieces if e in experts]
        return merged((len(experts), *shape[1:]), own)

    return Source(shape=shape, fill=fill, experts=some)


def excerpt(source: Source, experts: range) -> Source:
    """Return the source of some experts of a fused tensor.

    Only their own bytes are read where the source can do that; else the whole is made and cut.
    """
    if source.experts is not None:
        return source.experts(experts)

    def fill(out: Tensor) -> None:
        whole = torch.empty(source.shape, dtype=out.dtype)
        source.fill(whole)
        out.copy_(whole[experts.start : experts.stop])

    return Source(shape=(len(experts), *source.shape[1:]), fill=fill)


def quantized(source: Source, dtype: torch.dtype, quantize: Callable[..., None]) -> Source:
    """Return a source that fills packed fields by quantizing another's tensor of this dtype."""

    def fill(*out: Tensor) -> None:
        weight = torch.empty(source.shape, dtype=dtype)
        source.fill(weight)
        quantize(weight, *out)

    return Source(shape=source.shape, fill=fill)


def _copy(checkpoint: Checkpoint, stored: StoredTensor, out: Tensor) -> None:
    """Read a stored tensor into `out`, through a temporary if the dtypes differ."""
    if stored.dtype == out.dtype and out.is_contiguous():
        checkpoint.read(stored, out)
    else:
        out.copy_(checkpoint.load(stored))
