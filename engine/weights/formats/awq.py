"""Checkpoints of AWQ in its gemm version.

A linear weight [out, in] is stored transposed: `qweight` [in, out / 8], `qzeros` [groups, out / 8]
and `scales` [groups, out]. A word of int32 has 8 codes of 4 bits, in the order of `_ORDER`.
"""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.compiled import awq_words
from engine.compiled.compiler import is_available
from engine.errors import shown
from engine.weights.formats.groups import (
    SCALES,
    check_group,
    check_part,
    check_words,
    group_size,
    part_of,
    pieces,
    unpack,
)
from engine.weights.formats.scaled_codes import Form, ScaledLayout
from engine.weights.formats.scaled_plans import head_of, is_part_of, names_of, plan_scaled
from engine.weights.formats.scaled_sources import ScaledWeight, write_zeros
from engine.weights.layout import Fields
from engine.weights.safetensors import Checkpoint
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, Shape, StoredFormat, unsupported

_CODES = ".qweight"
_BITS = 4
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the column of each code of a word, the lowest bits first
_WORD = len(_ORDER)
_FORM = Form("uint4", has_zeros=True)


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


def plan(model: PreTrainedModel, quantization: QuantizationConfig) -> dict[str, Fields]:
    """Return the packed fields of the linear weights and experts.

    config.json does not tell the type of the scales, which is float16 in nearly all checkpoints.
    """
    skipped = [*names_of(quantization, "modules_to_not_convert"), head_of(model)]
    size = group_size(quantization)

    def layout_of(module: str, shape: Shape) -> ScaledLayout | None:
        if len(shape) > 2 or is_part_of(module, skipped):
            return None
        return ScaledLayout(_FORM, shape, (1, size or shape[1]), torch.float16)

    return plan_scaled(model, layout_of)


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
    layout = ScaledLayout(_FORM, (words * _WORD, inputs), (1, size), scales.dtype)

    def read_codes(rows: range, out: Tensor) -> None:
        for piece in pieces(inputs, words * _WORD, multiple=2):
            own = out[:, piece.start // 2 : (piece.stop + 1) // 2]
            own.copy_(transpose(checkpoint.load(codes.part(piece))))

    def read_others(out_scales: Tensor, out_zeros: Tensor) -> None:
        out_scales.copy_(checkpoint.load(scales).T)
        write_zeros(_in_order(checkpoint.load(zeros)).T, _BITS, out_zeros)

    parts = (codes, zeros, scales)
    return ScaledWeight(layout, read_codes, read_others, parts, reads_rows=False).source()


FORMAT = StoredFormat(title="awq (gemm)", detect=detect, find=find, plan=plan)
