"""Checkpoints of GPTQ, expanded when they are read.

A linear weight [out, in] is stored as `qweight` (codes packed into int32 along the inputs),
`scales` [groups, out], `qzeros` (packed along the outputs) and, if inputs were quantized in another
order (desc_act), `g_idx`: the group of each one. Version 1 stores zeros less one.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import ModelError, shown
from engine.weights.formats.groups import (
    AGAIN,
    SCALES,
    as_bytes,
    check_part,
    check_words,
    dequantize,
    group_size,
    load_groups,
    packed_values,
    part_of,
    pieces,
    unpack,
)
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, StoredFormat, unsupported

_CODES = ".qweight"
_BITS = (2, 3, 4, 8)
_WORD_BITS = 32
_VERSIONS = ("gptq", "gptq_v2")


def detect(quantization: QuantizationConfig) -> bool:
    """Return whether GPTQ made the checkpoint. Raises `ModelError` for a variant of it."""
    if quantization["quant_method"] != "gptq":
        return False
    if (bits := quantization.get("bits")) not in _BITS:
        raise unsupported(quantization, f"with bits {shown(bits)}")
    version = "marlin" if quantization.get("is_marlin_format") else _version(quantization)
    if version not in _VERSIONS:
        raise unsupported(quantization, f"of checkpoint_format {shown(version)}")
    if (words := quantization.get("pack_dtype") or "int32") not in ("int32", "torch.int32"):
        raise unsupported(quantization, f"with pack_dtype {shown(words)}")
    if rotation := quantization.get("rotation"):
        raise unsupported(quantization, f"with rotation {shown(rotation)}")
    group_size(quantization)  # raises if it is wrong
    return True


def find(checkpoint: Checkpoint, quantization: QuantizationConfig) -> dict[str, Source]:
    """Return the sources of the linear weights that have a qweight."""
    names = [name for name in checkpoint.tensors if name.endswith(_CODES)]
    return {
        f"{name.removesuffix(_CODES)}.weight": _source(checkpoint, name, quantization)
        for name in names
    }


@dataclass(frozen=True)
class _Weight:
    """One stored weight [outputs, inputs]."""

    checkpoint: Checkpoint
    codes: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    groups: StoredTensor | None  # the group of each input; None: inputs are in order
    bits: int
    group_size: int
    is_less_one: bool  # whether zeros are stored less one

    def fill(self, out: Tensor) -> None:
        """Expand the weight into `out`."""
        rows, outputs = self.codes.shape
        inputs = rows * _WORD_BITS // self.bits
        group = self._groups(inputs)
        scales = self.checkpoint.load(self.scales).float().T.contiguous()
        zeros = self._zeros().float().T.contiguous()
        whole = self.bits if _WORD_BITS % self.bits else 1  # words that begin with a whole code
        for piece in pieces(rows, outputs * _WORD_BITS // self.bits, whole):
            words = self.checkpoint.load(self.codes.part(piece)).T.contiguous()
            start, stop = (edge * _WORD_BITS // self.bits for edge in (piece.start, piece.stop))
            if self.bits == 3:
                codes, values = unpack(words, self.bits), packed_values(8)
            else:
                codes, values = as_bytes(words), packed_values(self.bits)
            dequantize(codes, values, scales, zeros, group[start:stop], out[:, start:stop])

    def _zeros(self) -> Tensor:
        """Return the codes that stand for zero, [groups, outputs]."""
        words = self.checkpoint.load(self.zeros)
        if not self.is_less_one:
            return unpack(words, self.bits)
        if _WORD_BITS % self.bits:
            return (unpack(words, self.bits) + 1).bitwise_and_((1 << self.bits) - 1)
        # The usual packer (gptqmodel) subtracts a one in each code from the whole word, so a zero
        # of 0 borrows from the next code. This addition is the inverse, with the carry.
        ones = sum(1 << shift for shift in range(0, _WORD_BITS, self.bits))
        return unpack((words.long() + ones).to(torch.int32), self.bits)

    def _groups(self, inputs: int) -> Tensor:
        """Return the group of each input. Raises `ModelError` if the stored ones are wrong."""
        if self.groups is None:
            return torch.arange(inputs) // self.group_size
        return load_groups(self.checkpoint, self.groups, self.scales.shape[0])


def _source(checkpoint: Checkpoint, name: str, quantization: QuantizationConfig) -> Source:
    module = name.removesuffix(_CODES)
    codes = checkpoint.tensors[name]
    scales, zeros = (
        part_of(checkpoint, codes, f"{module}.{part}") for part in ("scales", "qzeros")
    )
    groups = checkpoint.tensors.get(f"{module}.g_idx")
    if quantization.get("desc_act") and groups is None:
        part_of(checkpoint, codes, f"{module}.g_idx")
    check_words(codes)
    bits = _bits(codes, zeros, quantization)
    rows, outputs = codes.shape
    inputs = rows * _WORD_BITS // bits
    size = min(group_size(quantization) or inputs, inputs)
    if quantization.get("dynamic") and len(scales.shape) == 2 and scales.shape[0]:
        size = -(-inputs // scales.shape[0])  # modules may have sizes of their own
    count = -(-inputs // size)
    check_part(scales, codes, [(count, outputs)], SCALES)
    check_part(zeros, codes, [(count, outputs * bits // _WORD_BITS)], (torch.int32,))
    if groups is not None:
        check_part(groups, codes, [(inputs,)], (torch.int32, torch.int64))
    weight = _Weight(
        checkpoint,
        codes=codes,
        zeros=zeros,
        scales=scales,
        groups=groups,
        bits=bits,
        group_size=size,
        is_less_one=_version(quantization) == "gptq",
    )
    parts = [part for part in (codes, zeros, scales, groups) if part is not None]
    return Source(shape=(outputs, inputs), fill=weight.fill, parts=tuple(parts))


def _bits(codes: StoredTensor, zeros: StoredTensor, quantization: QuantizationConfig) -> int:
    """Return the bits of a code: the configuration's, or a module's own if there are such."""
    bits = int(quantization["bits"])
    if quantization.get("dynamic") and len(zeros.shape) == 2:
        own = zeros.shape[1] * _WORD_BITS // codes.shape[1]
        bits = own if own in _BITS else bits
    if codes.shape[0] * _WORD_BITS % bits or codes.shape[1] * bits % _WORD_BITS:
        raise ModelError(
            f"{codes.file}: {codes.name} has shape {list(codes.shape)}, which {bits} bits do not "
            f"fill. {AGAIN}, or quantization_config does not belong to it"
        )
    return bits


def _version(quantization: QuantizationConfig) -> object:
    stored = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
    return stored.lower() if isinstance(stored, str) else stored


FORMAT = StoredFormat(title="gptq", detect=detect, find=find, expanded="GPTQ weights")
