"""Checkpoints of AWQ in its gemm version, expanded when they are read.

A linear weight [out, in] is stored transposed: `qweight` [in, out / 8], `qzeros` [groups, out / 8]
and `scales` [groups, out]. A word of int32 has 8 codes of 4 bits, in the order of `_ORDER`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.compiled import awq_words
from engine.compiled.compiler import is_available
from engine.errors import shown
from engine.weights.formats.groups import (
    SCALES,
    check_group,
    check_part,
    check_words,
    dequantize,
    group_size,
    packed_values,
    part_of,
    pieces,
    unpack,
)
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, StoredFormat, unsupported

_CODES = ".qweight"
_BITS = 4
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each code of a word, the lowest bits first
_WORD = len(_ORDER)


def detect(quantization: QuantizationConfig) -> bool:
    """Return whether AWQ made the checkpoint. Raises `ModelError` for a variant of it."""
    if quantization["quant_method"] != "awq":
        return False
    if (bits := quantization.get("bits", _BITS)) != _BITS:
        raise unsupported(quantization, f"with bits {shown(bits)}")
    version = quantization.get("version") or quantization.get("format") or "gemm"
    if not isinstance(version, str) or version.lower() != "gemm":
        raise unsupported(quantization, f"of version {shown(version)}")
    if quantization.get("backend") == "llm-awq":
        raise unsupported(quantization, "of backend 'llm-awq'")
    group_size(quantization)  # raises if it is wrong
    return True


def find(checkpoint: Checkpoint, quantization: QuantizationConfig) -> dict[str, Source]:
    """Return the sources of the linear weights that have a qweight."""
    size = group_size(quantization)
    names = [name for name in checkpoint.tensors if name.endswith(_CODES)]
    return {
        f"{name.removesuffix(_CODES)}.weight": _source(checkpoint, name, size) for name in names
    }


@dataclass(frozen=True)
class _Weight:
    """One stored weight [outputs, inputs]."""

    checkpoint: Checkpoint
    codes: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    group_size: int

    def fill(self, out: Tensor) -> None:
        """Expand the weight into `out`."""
        inputs, words = self.codes.shape
        scales = self.checkpoint.load(self.scales).float().T.contiguous()
        zeros = _in_order(self.checkpoint.load(self.zeros)).float().T.contiguous()
        for piece in pieces(inputs, words * _WORD, multiple=2):
            codes = transpose(self.checkpoint.load(self.codes.part(piece)))
            group = torch.arange(piece.start, piece.stop) // self.group_size
            own = out[:, piece.start : piece.stop]
            dequantize(codes, packed_values(_BITS), scales, zeros, group, own)


def _in_order(words: Tensor) -> Tensor:
    """Return the codes of words [rows, words] in the order of the columns."""
    codes = unpack(words, _BITS).view(*words.shape, _WORD)
    return codes.index_select(-1, torch.tensor(_ORDER).argsort()).flatten(-2)


def transpose(words: Tensor) -> Tensor:
    """Return the codes of words [inputs, words] as [outputs, bytes], two inputs in a byte."""
    inputs, count = words.shape
    out = torch.empty(count * _WORD, (inputs + 1) // 2, dtype=torch.uint8)
    if is_available():
        awq_words.transpose(words, torch.tensor(_ORDER), out)
        return out
    codes = torch.nn.functional.pad(_in_order(words), (0, 0, 0, inputs % 2))
    torch.add(codes[::2].T, codes[1::2].T, alpha=16, out=out)
    return out


def _source(checkpoint: Checkpoint, name: str, wanted: int | None) -> Source:
    module = name.removesuffix(_CODES)
    codes = checkpoint.tensors[name]
    scales, zeros = (
        part_of(checkpoint, codes, f"{module}.{part}") for part in ("scales", "qzeros")
    )
    check_words(codes)
    inputs, words = codes.shape
    size = wanted or inputs
    check_group(f"{codes.file}: {name}", inputs, size)
    check_part(scales, codes, [(inputs // size, words * _WORD)], SCALES)
    check_part(zeros, codes, [(inputs // size, words)], (torch.int32,))
    return Source(
        shape=(words * _WORD, inputs),
        fill=_Weight(checkpoint, codes, zeros, scales, size).fill,
        parts=(codes, zeros, scales),
    )


FORMAT = StoredFormat(title="awq (gemm)", detect=detect, find=find, expanded="AWQ weights")
