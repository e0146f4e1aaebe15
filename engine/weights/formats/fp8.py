"""Checkpoints of FP8 weights (quant_method fp8 or fbgemm_fp8), expanded when they are read.

A weight is its codes times a scale of the whole weight, of each row, or of each block of
`weight_block_size`. The scales are stored beside it as `weight_scale_inv` or `weight_scale`; the
first name is historical, and both are factors.
"""

from engine.errors import ModelError, shown
from engine.weights.formats.groups import (
    AGAIN,
    EXPONENTS,
    FP8,
    SCALES,
    Block,
    check_part,
    is_block,
    scale_shapes,
    scaled_source,
)
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Source
from engine.weights.stored_format import QuantizationConfig, StoredFormat, unsupported

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


def _source(checkpoint: Checkpoint, codes: StoredTensor, block: Block | None) -> Source:
    names = [codes.name + suffix for suffix in _SUFFIXES]
    stored = [checkpoint.tensors[name] for name in names if name in checkpoint.tensors]
    if not stored:
        raise ModelError(f"{codes.file}: {codes.name} has no {' or '.join(names)}. {AGAIN}")
    shapes = scale_shapes(codes.shape, [block] if block else [])
    check_part(stored[0], codes, shapes, (*SCALES, *EXPONENTS))
    return scaled_source(checkpoint, codes, stored[0], None, shapes[stored[0].shape])


def _block(quantization: QuantizationConfig) -> Block | None:
    """Return the block that shares a scale; None if the configuration has no blocks."""
    sizes = quantization.get("weight_block_size", _DEFAULT_BLOCK)
    if sizes is None:
        return None
    if not is_block(sizes):
        raise ModelError(
            "config.json: quantization_config.weight_block_size: two sizes are expected, found "
            f"{shown(sizes)}"
        )
    return sizes[0], sizes[1]


FORMAT = StoredFormat(title="fp8", detect=detect, find=find, expanded="FP8 weights")
