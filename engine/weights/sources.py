"""How one tensor of a model is made from the tensors of its checkpoint.

Each source knows how to `fill` memory it is given: straight from the file where the bytes agree,
through a temporary no larger than one stored tensor otherwise.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.weights.formats import mxfp4, nf4
from engine.weights.safetensors import Checkpoint, StoredTensor

FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

Index = tuple[int | slice, ...]


class Source(Protocol):
    """Fills the fields of one model tensor; safe to call from several threads."""

    def fill(self, *out: Tensor) -> None:
        """Write the tensor into `out` (one dense field, or nf4's codes and maxima)."""


@dataclass(frozen=True)
class Piece:
    """A stored tensor and the part of the model's tensor that it is."""

    stored: StoredTensor
    index: Index = ()


@dataclass(frozen=True)
class Direct:
    """Stored tensors that are copied to their places: one, or one for each expert."""

    checkpoint: Checkpoint
    pieces: tuple[Piece, ...]

    def fill(self, *out: Tensor) -> None:
        (dense,) = out
        for piece in self.pieces:
            place(self.checkpoint, piece.stored, dense[piece.index] if piece.index else dense)

    def experts(self, experts: range) -> "Direct":
        """Some experts of fused ones, stored one by one or as one tensor."""
        pieces: list[Piece] = []
        for piece in self.pieces:
            if not piece.index:
                pieces.append(Piece(piece.stored.part(experts)))
                continue
            expert, *rest = piece.index
            assert isinstance(expert, int), piece
            if expert in experts:
                pieces.append(Piece(piece.stored, (expert - experts.start, *rest)))
        return Direct(self.checkpoint, tuple(pieces))

    @property
    def whole(self) -> StoredTensor | None:
        """The stored tensor, where the model's tensor is exactly one of them."""
        first = self.pieces[0]
        return first.stored if len(self.pieces) == 1 and not first.index else None


@dataclass(frozen=True)
class Mxfp4:
    """Experts stored as 4-bit blocks and scales, expanded when read."""

    checkpoint: Checkpoint
    blocks: StoredTensor
    scales: StoredTensor

    def fill(self, *out: Tensor) -> None:
        (dense,) = out
        blocks, scales = self.checkpoint.load(self.blocks), self.checkpoint.load(self.scales)
        mxfp4.expand(blocks, scales, dense)

    def experts(self, experts: range) -> "Mxfp4":
        """Some of the experts."""
        return Mxfp4(self.checkpoint, self.blocks.part(experts), self.scales.part(experts))


@dataclass(frozen=True)
class StoredNf4:
    """A weight that bitsandbytes stored in nf4: passed on packed, or expanded for a dense field.

    Double-quantized maxima become float32 here, so that nothing but codes and maxima travels.
    """

    checkpoint: Checkpoint
    codes: StoredTensor
    statistics: Mapping[str, StoredTensor]  # absmax and, double quantized, nested_*
    state: Mapping[str, object]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.state["shape"])  # type: ignore[arg-type]  # parse_state made it a list

    @property
    def block(self) -> int:
        return int(str(self.state["blocksize"]))

    @property
    def stays_packed(self) -> bool:
        """False where a block runs across rows, which no kernel expands right."""
        return len(self.shape) == 2 and self.shape[-1] % self.block == 0

    def fill(self, *out: Tensor) -> None:
        if len(out) == 2:
            codes, absmax = out
            self.checkpoint.read(self.codes, codes)
            absmax.copy_(self._absmax().view(absmax.shape))
        else:
            (dense,) = out
            codes = self.checkpoint.load(self.codes).view(torch.uint8)
            nf4.dequantize_any(codes, self._absmax(), dense, self.block)

    def _absmax(self) -> Tensor:
        loaded = {name: self.checkpoint.load(stored) for name, stored in self.statistics.items()}
        if "nested_absmax" in loaded:
            return nf4.nested_absmax(loaded, self.state)
        return loaded["absmax"].float()


@dataclass(frozen=True)
class Quantized:
    """A dense source quantized to nf4 when read."""

    dense: Source
    dtype: torch.dtype
    shape: tuple[int, ...]

    def fill(self, *out: Tensor) -> None:
        weight = torch.empty(self.shape, dtype=self.dtype)
        self.dense.fill(weight)
        nf4.quantize(weight, *out)


@dataclass(frozen=True)
class Excerpt:
    """Some experts of a source that is only made as a whole: all of it is read."""

    whole: Source
    dtype: torch.dtype
    shape: tuple[int, ...]  # of the whole
    experts: range

    def fill(self, *out: Tensor) -> None:
        (dense,) = out
        whole = torch.empty(self.shape, dtype=self.dtype)
        self.whole.fill(whole)
        dense.copy_(whole[self.experts.start : self.experts.stop])


def excerpt(source: Source, experts: range, dtype: torch.dtype, shape: tuple[int, ...]) -> Source:
    """The source of some experts of a fused tensor [experts, ...] of this dtype and shape.

    Only their own bytes are read, but for experts that bitsandbytes stored fused: nf4 blocks know
    no border between experts.
    """
    if isinstance(source, Direct | Mxfp4):
        return source.experts(experts)
    return Excerpt(source, dtype, shape, experts)


def place(checkpoint: Checkpoint, stored: StoredTensor, out: Tensor) -> None:
    """Read a stored tensor into `out`, converting the dtype through a temporary if need be."""
    if stored.dtype == out.dtype and out.is_contiguous():
        checkpoint.read(stored, out)
    else:
        out.copy_(checkpoint.load(stored))


def check_dtype(name: str, stored: StoredTensor, wanted: torch.dtype) -> None:
    """Raise `ModelError` unless `stored` can become `wanted` without a quantization's scales."""
    if wanted in FLOAT_DTYPES and stored.dtype in FLOAT_DTYPES:
        return
    if stored.dtype != wanted:
        raise ModelError(
            f"{stored.file}: {stored.name} has dtype {stored.dtype}, but {name} is {wanted}. "
            "Quantized checkpoints are only read as bitsandbytes nf4 or gpt-oss mxfp4"
        )


def check_shape(name: str, stored: StoredTensor, wanted: tuple[int, ...]) -> None:
    """Raise `ModelError` unless the stored shape is the wanted one."""
    if stored.shape != wanted:
        raise ModelError(
            f"{stored.file}: {stored.name} has shape {list(stored.shape)}, but {name} needs "
            f"{list(wanted)}. config.json does not belong to this checkpoint"
        )
