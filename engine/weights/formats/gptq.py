"""Checkpoints of GPTQ.

A linear weight [out, in] is stored as `qweight` (codes packed into int32 along the inputs),
`scales` [groups, out], `qzeros` (packed along the outputs) and, if inputs were quantized in another
order (desc_act), `g_idx`: the group of each one. Version 1 stores zeros less one.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.errors import ModelError, shown
from engine.weights.formats.groups import (
    AGAIN,
    SCALES,
    as_bytes,
    check_part,
    check_words,
    group_size,
    load_groups,
    part_of,
    pieces,
    unpack,
)
from engine.weights.formats.scaled_codes import CODES, Form, ScaledLayout
from engine.weights.formats.scaled_plans import head_of, is_part_of, matches, plan_scaled
from engine.weights.formats.scaled_sources import ScaledWeight, write_zeros
from engine.weights.layout import Fields
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, Shape, StoredFormat, unsupported

_CODES = ".qweight"
_BITS = (2, 3, 4, 8)
_WORD_BITS = 32
_VERSIONS = ("gptq", "gptq_v2")


def detect(quantization: QuantizationConfig) -> bool:
    """Return whether GPTQ made the checkpoint. Raises `ModelError` for a variant of it."""
    if quantization["quant_method"] != "gptq":
        return False
    if (bits := quantization.get("bits")) not in _BITS:
        raise unsupported(quantization, f"with bits {shown(bits)} instead of 2, 3, 4 or 8")
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


def plan(model: PreTrainedModel, quantization: QuantizationConfig) -> dict[str, Fields]:
    """Return the packed fields of the linear weights and experts.

    config.json does not tell the type of the scales, which is float16 in nearly all checkpoints,
    nor whether `g_idx` has another order than that of the columns where `desc_act` is false.
    """
    head = [] if quantization.get("lm_head") else [head_of(model)]

    def layout_of(module: str, shape: Shape) -> ScaledLayout | None:
        own = _own(quantization, module)
        if len(shape) > 2 or is_part_of(module, head) or own is None:
            return None
        form = Form(f"uint{int(own['bits'])}", True, bool(own.get("desc_act")))
        size = min(group_size(own) or shape[1], shape[1])
        return ScaledLayout(form, shape, (1, size), torch.float16)

    return plan_scaled(model, layout_of)


def _own(quantization: QuantizationConfig, module: str) -> QuantizationConfig | None:
    """Return the configuration of one module; None if it is not quantized.

    The patterns of `dynamic` begin with "-:" if they exclude modules.
    """
    dynamic = quantization.get("dynamic")
    for pattern, own in dynamic.items() if isinstance(dynamic, Mapping) else ():
        if matches(pattern.removeprefix("-:").removeprefix("+:"), module):
            if pattern.startswith("-:") or own is False:
                return None
            found = {**quantization, **own} if isinstance(own, Mapping) else quantization
            return found if found.get("bits") in _BITS else quantization
    return quantization


@dataclass(frozen=True)
class _Weight:
    """One stored weight [outputs, inputs]."""

    checkpoint: Checkpoint
    codes: StoredTensor
    zeros: StoredTensor
    scales: StoredTensor
    groups: StoredTensor | None  # the group of each input; None: groups are neighbours
    bits: int
    group_size: int
    is_less_one: bool  # whether zeros are stored less one

    @property
    def inputs(self) -> int:
        """The columns of the weight."""
        return self.codes.shape[0] * _WORD_BITS // self.bits

    @property
    def layout(self) -> ScaledLayout:
        """The fields of the weight."""
        form = Form(f"uint{self.bits}", has_zeros=True, has_order=self.groups is not None)
        shape = self.codes.shape[1], self.inputs
        return ScaledLayout(form, shape, (1, self.group_size), self.scales.dtype)

    def read_codes(self, rows: range, out: Tensor) -> None:
        """Read the codes of all rows."""
        count, outputs = self.codes.shape
        whole = self.bits if _WORD_BITS % self.bits else 1  # words that begin with a whole code
        for piece in pieces(count, outputs * _WORD_BITS // self.bits, whole):
            words = self.checkpoint.load(self.codes.part(piece)).T.contiguous()
            codes = unpack(words, self.bits) if self.bits == 3 else as_bytes(words)
            start, stop = (edge * out.shape[1] // count for edge in (piece.start, piece.stop))
            out[:, start:stop] = codes

    def read_others(self, scales: Tensor, zeros: Tensor, order: Tensor | None = None) -> None:
        """Read the scales, the zeros and the group of each input."""
        layout = self.layout
        scales.copy_(layout.spread(self.checkpoint.load(self.scales).T))
        write_zeros(layout.spread(self._zeros().T), CODES[layout.form.codes].bits, zeros)
        if order is not None and self.groups is not None:
            order.copy_(load_groups(self.checkpoint, self.groups, self.scales.shape[0]))

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
    parts = [part for part in (codes, zeros, scales, groups) if part is not None]
    if groups is not None and not quantization.get("desc_act"):
        stored = load_groups(checkpoint, groups, count)
        if torch.equal(stored, torch.arange(inputs) // size):
            groups = None  # it is stored always, also if it says nothing
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
    return ScaledWeight(
        weight.layout, weight.read_codes, weight.read_others, tuple(parts), reads_rows=False
    ).source()


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


FORMAT = StoredFormat(title="gptq", detect=detect, find=find, plan=plan)
