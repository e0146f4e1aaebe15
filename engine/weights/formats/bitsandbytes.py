"""Checkpoints that bitsandbytes quantized to nf4, with single or double quantization.

Weights stay packed in the form of engine.weights.formats.nf4. Double-quantized maxima become
float32 when they are read, so that only codes and maxima are copied to the device. A weight whose
blocks extend over several rows is expanded when it is read, since no kernel expands it correctly.
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from engine.errors import ModelError, shown
from engine.files import parse_object
from engine.weights.formats import nf4
from engine.weights.layout import Fields
from engine.weights.outline import linear_weights
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, StoredFormat, unsupported

LONGEST_STATE = 1 << 16  # bytes
LARGEST_SIZE = 1 << 31  # of a dimension of a weight, or of a block
_STATE = "quant_state.bitsandbytes__nf4"
_STATISTICS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", _STATE)


def detect(quantization: QuantizationConfig) -> bool:
    """Return whether bitsandbytes quantized the checkpoint. Raises `ModelError` if not to nf4."""
    if quantization["quant_method"] != "bitsandbytes":
        return False
    four_bit = quantization.get("load_in_4bit") or quantization.get("_load_in_4bit")
    kind = quantization.get("bnb_4bit_quant_type") if four_bit else None
    if kind != "nf4":
        raise unsupported(quantization, kind)
    return True


def find(checkpoint: Checkpoint, quantization: QuantizationConfig) -> dict[str, Source]:
    """Return the sources of the weights that have a quant_state."""
    suffix = f".{_STATE}"
    weights = [n.removesuffix(suffix) for n in checkpoint.tensors if n.endswith(suffix)]
    return {weight: _source(checkpoint, weight) for weight in weights}


def plan(model: PreTrainedModel, quantization: QuantizationConfig) -> dict[str, Fields]:
    """Return the packed fields of linear weights and experts, without those that are skipped."""
    skipped = quantization.get("llm_int8_skip_modules") or ["lm_head"]
    state = model.state_dict()
    paths = {name: name.removesuffix(".weight") for name in linear_weights(model)}
    return {
        name: nf4.packed_fields(tuple(state[name].shape))
        for name, path in paths.items()
        if not any(path == skip or path.endswith(f".{skip}") for skip in skipped)
    }


def _source(checkpoint: Checkpoint, weight: str) -> Source:
    """Return the source of one weight, given its name."""
    tensors, name = checkpoint.tensors, f"{weight}.{_STATE}"
    stored = {part: tensors.get(f"{weight}.{part}") for part in _STATISTICS}
    parts = {part: tensor for part, tensor in stored.items() if tensor is not None}
    if weight not in tensors or "absmax" not in parts:
        raise ModelError(f"{parts[_STATE].file}: {name} is there, but not its weight and absmax")
    codes = tensors[weight]
    state = _parse_state(checkpoint.load(parts[_STATE]), f"{codes.file}: {name}")
    nested = {"nested_blocksize", "nested_offset"} <= state.keys()
    if "nested_absmax" in parts and not (nested and "nested_quant_map" in parts):
        raise ModelError(f"{codes.file}: {name}: incomplete double quantization of {weight}")
    shape, block = tuple(state["shape"]), state["blocksize"]
    weights, blocks = math.prod(shape), math.prod(parts["absmax"].shape)
    if "nested_absmax" in parts and not _is_double(blocks, parts, state):
        raise ModelError(f"{codes.file}: {name}: wrong sizes of double quantization of {weight}")
    if (weights + 1) // 2 != codes.nbytes or -(-weights // block) != blocks:
        raise ModelError(
            f"{codes.file}: {codes.name} has {codes.nbytes} bytes and {blocks} blocks, not "
            f"those of {weights} weights in blocks of {block}. Download it again"
        )
    packed = nf4.packed_fields(shape, block) if len(shape) == 2 else {}
    return Source(
        shape=shape,
        fill=partial(_fill, checkpoint, codes, parts, state),
        parts=(codes, *parts.values()),
        packed=packed,
        why_expanded="" if packed else f"blocks of {block} nf4 values extend over rows",
    )


def _is_double(blocks: int, parts: Mapping[str, StoredTensor], state: Mapping[str, Any]) -> bool:
    """Return whether the double-quantized maxima of `blocks` blocks have the right sizes."""
    groups = math.prod(parts["nested_absmax"].shape)
    is_coded = parts["absmax"].dtype == torch.uint8 and parts["nested_quant_map"].shape == (256,)
    return is_coded and -(-blocks // state["nested_blocksize"]) == groups


def _fill(
    checkpoint: Checkpoint,
    codes: StoredTensor,
    parts: Mapping[str, StoredTensor],
    state: Mapping[str, Any],
    *out: Tensor,
) -> None:
    """Write a weight into its packed codes and maxima, or into one dense tensor."""
    absmax = _absmax(checkpoint, parts, state)
    if len(out) == 2:
        checkpoint.read(codes, out[0])
        out[1].copy_(absmax.view(out[1].shape))
    else:
        _expand(checkpoint.load(codes).view(torch.uint8), absmax, out[0], state["blocksize"])


def _absmax(
    checkpoint: Checkpoint, parts: Mapping[str, StoredTensor], state: Mapping[str, Any]
) -> Tensor:
    """Return the maxima in float32, also of double quantization (QLoRA, section 3)."""
    absmax = checkpoint.load(parts["absmax"])
    if "nested_absmax" not in parts:
        return absmax.float()
    codes = absmax.view(-1)
    values = checkpoint.load(parts["nested_quant_map"]).float()[codes.int()]
    maxima = checkpoint.load(parts["nested_absmax"]).float()
    maxima = maxima.repeat_interleave(int(state["nested_blocksize"]))
    return values * maxima[: codes.numel()] + float(state["nested_offset"])


def _expand(packed: Tensor, absmax: Tensor, out: Tensor, block: int) -> None:
    """Expand a weight of any shape, as one row per block, since blocks may extend over rows."""
    blocks = torch.empty(absmax.numel(), block, dtype=out.dtype)
    flat = packed.view(-1)
    whole = F.pad(flat, (0, blocks.numel() // 2 - flat.numel()))
    nf4.dequantize(whole.view(len(blocks), -1), absmax.view(-1, 1), blocks)
    out.copy_(blocks.view(-1)[: out.numel()].view(out.shape))


def _parse_state(raw: Tensor, name: str) -> dict[str, Any]:
    """Return the quant_state of a weight, which is JSON in a uint8 tensor. Raises `ModelError`."""
    where = f"{name}: unreadable bitsandbytes quant_state"
    if raw.dtype != torch.uint8 or raw.numel() > LONGEST_STATE:
        raise ModelError(f"{where}: {raw.numel()} values of {raw.dtype}")
    text = bytes(raw.view(-1).tolist()).decode("utf-8", errors="replace")
    state = parse_object(text, where)
    shape = state.get("shape")
    sizes = [state.get("blocksize"), state.get("nested_blocksize", 1)]
    sizes += shape if isinstance(shape, list) and shape else [None]
    if not all(type(size) is int and 1 <= size <= LARGEST_SIZE for size in sizes):
        raise ModelError(f"{where}: shape {shown(shape)}, block sizes {shown(sizes[:2])}")
    offset = state.get("nested_offset", 0.0)
    if not isinstance(offset, int | float) or not math.isfinite(offset):
        raise ModelError(f"{where}: nested_offset: {shown(offset)}")
    return state


FORMAT = StoredFormat(title="bitsandbytes 4-bit nf4", detect=detect, find=find, plan=plan)
