"""Checkpoints of FP8 weights (quant_method fp8 or fbgemm_fp8).

A weight is its codes times a scale of the whole weight, of each row, or of each block of
`weight_block_size`. The scales are stored beside it as `weight_scale_inv` or `weight_scale`; the
first name is historical, and both are factors.
"""

import torch
from transformers import PreTrainedModel

from engine.errors import ModelError, shown
from engine.weights.config_place import ConfigError
from engine.weights.formats.groups import (
    AGAIN,
    EXPONENTS,
    FP8,
    SCALES,
    Block,
    check_part,
    is_block,
    scale_shapes,
)
from engine.weights.formats.scaled_codes import Form, ScaledLayout
from engine.weights.formats.scaled_plans import head_of, is_part_of, names_of, plan_scaled
from engine.weights.formats.scaled_sources import number_source
from engine.weights.layout import Fields
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, Shape, StoredFormat, unsupported

_METHODS = ("fp8", "fbgemm_fp8")
_SUFFIXES = ("_scale_inv", "_scale")
_DEFAULT_BLOCK = (128, 128)  # of a quantization_config that does not name one, as in transformers


def detect(quantization: QuantizationConfig) -> bool:
    """Return whether the weights are FP8. Raises `ModelError` for a variant of it."""
    if quantization["quant_method"] not in _METHODS:
        return False
    if (experts := quantization.get("expert_dtype") or "fp8") != "fp8":
        raise unsupported(quantization, f"with expert_dtype {shown(experts)}")
    _block(quantization)
    return True


def find(checkpoint: Checkpoint, quantization: QuantizationConfig) -> dict[str, Source]:
    """Return the sources of all matrices of FP8 codes."""
    block = _block(quantization)
    return {
        name: _source(checkpoint, codes, block)
        for name, codes in checkpoint.tensors.items()
        if codes.dtype in FP8 and len(codes.shape) in (2, 3) and not name.endswith(_SUFFIXES)
    }


def plan(model: PreTrainedModel, quantization: QuantizationConfig) -> dict[str, Fields]:
    """Return the packed fields of the linear weights and experts.

    config.json does not tell the type of the scales, which is float32 in nearly all checkpoints.
    """
    skipped = names_of(quantization, "modules_to_not_convert", "ignored_layers")
    skipped.append(head_of(model))
    block = _block(quantization)
    is_by_row = quantization["quant_method"] == "fbgemm_fp8"
    is_of_exponents = quantization.get("scale_fmt") == "ue8m0"
    scales = torch.float8_e8m0fnu if is_of_exponents else torch.float32

    def layout_of(module: str, shape: Shape) -> ScaledLayout | None:
        if is_part_of(module, skipped):
            return None
        own = (1, shape[-1]) if is_by_row else block or (shape[-2], shape[-1])
        return ScaledLayout(Form("e4m3"), shape, own, scales)

    return plan_scaled(model, layout_of)


def _source(checkpoint: Checkpoint, codes: StoredTensor, block: Block | None) -> Source:
    names = [codes.name + suffix for suffix in _SUFFIXES]
    stored = [checkpoint.tensors[name] for name in names if name in checkpoint.tensors]
    if not stored:
        raise ModelError(f"{codes.file}: {codes.name} has no {' or '.join(names)}. {AGAIN}")
    shapes = scale_shapes(codes.shape, [block] if block else [])
    check_part(stored[0], codes, shapes, (*SCALES, *EXPONENTS))
    return number_source(checkpoint, codes, stored[0], None, shapes[stored[0].shape])


def _block(quantization: QuantizationConfig) -> Block | None:
    """Return the block that shares a scale; None if the configuration has no blocks."""
    sizes = quantization.get("weight_block_size", _DEFAULT_BLOCK)
    if sizes is None:
        return None
    if not is_block(sizes):
        raise ConfigError(
            "quantization_config.weight_block_size",
            f": two sizes are expected, found {shown(sizes)}",
        )
    return sizes[0], sizes[1]


FORMAT = StoredFormat(title="fp8", detect=detect, find=find, plan=plan)
