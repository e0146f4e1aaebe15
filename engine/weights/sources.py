"""Sources: how each tensor of a model is made from the tensors of its checkpoint."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor

from engine.weights.layout import Fields, TensorSpec
from engine.weights.safetensors import Checkpoint, StoredRows, StoredTensor

Expert = tuple[int, slice]  # one expert's rows in a fused tensor [experts, rows, columns]


@dataclass(frozen=True)
class Source:
    """A recipe that makes one tensor of a model.

    Args:
        shape: the shape of the dense tensor.
        fill: writes the tensor into its argument, or into one argument for each of the `packed`
            fields, if there are any. Several threads may call it in parallel.
        parts: the stored tensors that it is made from. Messages name the first one.
        packed: the fields of the tensor if it stays packed; empty if it becomes dense.
        why_expanded: the reason, for the log, if a tensor of a packed format becomes dense.
        experts: returns a source of some entries of the first dimension, which reads only these.
            None if only the whole tensor can be made.
        is_plain: whether the tensor is the only one of `parts`, apart from the dtype.
        rows: returns a matrix of a dtype that stays in its file, if its rows can be read alone.
    """

    shape: tuple[int, ...]
    fill: Callable[..., None]
    parts: tuple[StoredTensor, ...] = ()
    packed: Fields = field(default_factory=dict)
    why_expanded: str = ""
    experts: Callable[[range], "Source"] | None = None
    is_plain: bool = False
    rows: Callable[[torch.dtype], StoredRows] | None = None


def plain_source(checkpoint: Checkpoint, stored: StoredTensor) -> Source:
    """Return the source of a tensor that the checkpoint stores as it is."""
    return Source(
        shape=stored.shape,
        fill=partial(_copy, checkpoint, stored),
        parts=(stored,),
        experts=lambda experts: plain_source(checkpoint, stored.part(experts)),
        is_plain=True,
    )


def merge_sources(shape: tuple[int, ...], pieces: Sequence[tuple[Expert, Source]]) -> Source:
    """Return the source of a fused tensor whose experts are stored one by one.

    It can stay packed if the fields of all pieces can be put beside each other as their rows are.
    """
    packed = _merged_fields(shape, pieces)
    first = next(iter(packed.values()), None)

    def fill(*out: Tensor) -> None:
        is_packed = (out[0].dtype, tuple(out[0].shape)) == first
        for (expert, rows), piece in pieces:
            # Rows of a weight may share one row of a field, such as a scale of a block.
            steps = [shape[1] // own.shape[1] if is_packed else 1 for own in out]
            places = [slice(rows.start // step, rows.stop // step) for step in steps]
            piece.fill(*(own[expert, place] for own, place in zip(out, places, strict=True)))

    def some(experts: range) -> Source:
        own = [((e - experts.start, rows), piece) for (e, rows), piece in pieces if e in experts]
        return merge_sources((len(experts), *shape[1:]), own)

    why = next((piece.why_expanded for _, piece in pieces if piece.why_expanded), "")
    if not packed and not why and any(piece.packed for _, piece in pieces):
        why = "parts of experts are stored in different forms"
    return Source(shape=shape, fill=fill, packed=packed, why_expanded=why, experts=some)


def _merged_fields(shape: tuple[int, ...], pieces: Sequence[tuple[Expert, Source]]) -> Fields:
    """Return the packed fields of a fused tensor, given those of its pieces; none if they differ.

    The first dimension of a piece's fields must be its rows, or blocks of equally many rows.
    """
    merged: dict[str, TensorSpec] = {}
    names = pieces[0][1].packed.keys()
    for name in names:
        kinds = set()
        for (_, rows), piece in pieces:
            if piece.packed.keys() != names:
                return {}
            dtype, (count, *rest) = piece.packed[name]
            together, odd = divmod(rows.stop - rows.start, count) if count else (0, 1)
            if odd or rows.start % together:
                return {}
            kinds.add((dtype, together, tuple(rest)))
        if len(kinds) > 1:
            return {}
        dtype, together, others = kinds.pop()
        merged[name] = (dtype, (shape[0], shape[1] // together, *others))
    return merged


def transpose_source(source: Source, first: int, second: int) -> Source:
    """Return the source of a tensor that is stored with two of its dimensions exchanged."""
    shape = list(source.shape)
    shape[first], shape[second] = shape[second], shape[first]
    some = source.experts if first and second else None  # the first dimension is the experts'
    return replace(
        source,
        shape=tuple(shape),
        fill=lambda out: source.fill(out.transpose(first, second)),
        packed={},
        why_expanded="they are stored transposed" if source.packed else source.why_expanded,
        experts=(lambda held: transpose_source(some(held), first, second)) if some else None,
        rows=None,
    )


def stack_sources(sources: Sequence[Source]) -> Source:
    """Return the source of a tensor whose rows are stored as several tensors, in this order."""
    heights = [source.shape[0] for source in sources]

    def fill(out: Tensor) -> None:
        for source, rows in zip(sources, torch.split(out, heights), strict=True):
            source.fill(rows)

    parts = tuple(part for source in sources for part in source.parts)
    is_packed = any(source.packed for source in sources)
    return Source(
        shape=(sum(heights), *sources[0].shape[1:]),
        fill=fill,
        parts=parts,
        why_expanded="they are stored in several parts" if is_packed else "",
    )


def select_experts(source: Source, experts: range) -> Source:
    """Return the source of some experts of a fused tensor.

    It reads only their bytes if `source` supports that. Otherwise it makes the whole tensor and
    copies the experts.
    """
    if source.experts is not None:
        return source.experts(experts)

    def fill(*out: Tensor) -> None:
        count = source.shape[0]
        wholes = [torch.empty((count, *own.shape[1:]), dtype=own.dtype) for own in out]
        source.fill(*wholes)
        for own, whole in zip(out, wholes, strict=True):
            own.copy_(whole[experts.start : experts.stop])

    return Source(shape=(len(experts), *source.shape[1:]), fill=fill)


def quantize_source(source: Source, dtype: torch.dtype, quantize: Callable[..., None]) -> Source:
    """Return a source that quantizes the tensor of `source`, in this dtype, into packed fields."""

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
