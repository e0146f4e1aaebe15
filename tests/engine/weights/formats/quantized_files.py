"""Checkpoints in formats of quantized weights, packed here from the definitions of the formats.

Nothing here uses the engine's own unpacking. A maker returns the stored tensors of one weight, by
the endings of their names, and its dense values in float32.
"""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.engine.checkpoints import save_tiny

Array = np.ndarray[Any, Any]
Made = tuple[dict[str, Tensor], Array]
Maker = Callable[[np.random.Generator, tuple[int, int]], Made]


@dataclass(frozen=True)
class Format:
    """A format: the configuration's entry, and how a weight is stored."""

    entry: Mapping[str, Any]
    make: Maker
    key: str = "quantization_config"


def pack_words(codes: Array, bits: int) -> Array:
    """Return int32 words of codes [rows, n]: one stream of bits a row, the lowest bits first."""
    stream = (codes[..., None].astype(np.int64) >> np.arange(bits)) & 1
    flat = stream.reshape(len(codes), -1).astype(np.uint8)
    padded = np.pad(flat, ((0, 0), (0, -flat.shape[1] % 32)))
    return np.packbits(padded, axis=1, bitorder="little").view("<i4")


def small_float(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """Return the value of a float of few bits (OCP: E4M3 and E2M1; NaN is not made here)."""
    bias = 2 ** (exponent_bits - 1) - 1
    mantissa = (code & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits)
    exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1)
    sign = -1.0 if code >> (mantissa_bits + exponent_bits) else 1.0
    if exponent == 0:
        return float(sign * mantissa * 2.0 ** (1 - bias))
    return float(sign * (1 + mantissa) * 2.0 ** (exponent - bias))


E4M3 = np.array([small_float(code, 4, 3) for code in range(256)], dtype=np.float32)
E2M1 = np.array([small_float(code, 2, 1) for code in range(16)], dtype=np.float32)


def tensor(array: Array) -> Tensor:
    return torch.from_numpy(np.array(array, order="C"))


def fp8_codes(random: np.random.Generator, shape: tuple[int, ...]) -> Array:
    """Return E4M3 codes of random signs and of values up to 60."""
    return (random.integers(0, 104, shape) + 128 * random.integers(0, 2, shape)).astype(np.uint8)


def scales_of(random: np.random.Generator, shape: tuple[int, ...], size: float) -> Array:
    return (size * random.uniform(0.5, 1.5, shape)).astype(np.float32)


def spread(grid: Array, block: tuple[int, int], shape: tuple[int, int]) -> Array:
    """Return the entry of a grid of blocks for each element of a matrix."""
    rows, columns = (np.arange(shape[axis]) // block[axis] for axis in (0, 1))
    return np.asarray(grid[rows][:, columns])


def fp8(block: tuple[int, int], ending: str = "weight_scale_inv", *, flat: bool = False) -> Maker:
    """Return a maker of FP8 weights with a scale for each block; 0 stands for all of an axis."""

    def make(random: np.random.Generator, shape: tuple[int, int]) -> Made:
        size = (block[0] or shape[0], block[1] or shape[1])
        grid = tuple(-(-shape[axis] // size[axis]) for axis in (0, 1))
        codes, scales = fp8_codes(random, shape), scales_of(random, grid, 0.01)
        stored = scales.reshape(()) if flat else scales
        fields = {"weight": tensor(codes).view(torch.float8_e4m3fn), ending: tensor(stored)}
        fields["input_scale"] = torch.ones(1)
        return fields, E4M3[codes] * spread(scales, size, shape)

    return make


def integers(group: int, *, symmetric: bool, flat: bool = False) -> Maker:
    """Return a maker of compressed-tensors' int8 weights; a group of 0 is a row."""

    def make(random: np.random.Generator, shape: tuple[int, int]) -> Made:
        size = group or shape[1]
        codes = random.integers(-128, 128, shape).astype(np.int8)
        grid = (1, 1) if flat else (shape[0], shape[1] // size)
        scales = scales_of(random, grid, 0.002)
        zeros = random.integers(-9, 10, grid).astype(np.int8)
        fields = {
            "weight": tensor(codes),
            "weight_scale": tensor(scales.reshape(-1) if flat else scales),
        }
        if symmetric:
            zeros = np.zeros_like(zeros)
        else:
            fields["weight_zero_point"] = tensor(zeros)
        block = shape if flat else (1, size)
        centered = codes.astype(np.float32) - spread(zeros, block, shape)
        return fields, centered * spread(scales, block, shape)

    return make


def packed_integers(bits: int, group: int, *, zeros: str = "", shuffled: bool = False) -> Maker:
    """Return a maker of pack-quantized weights. `zeros` are "", "packed" or "plain"."""

    def make(random: np.random.Generator, shape: tuple[int, int]) -> Made:
        size, half = group or shape[1], 1 << (bits - 1)
        codes = random.integers(-half, half, shape)
        grid = (shape[0], shape[1] // size)
        scales = scales_of(random, grid, 0.4 / half)
        points = random.integers(-half, half, grid) if zeros else np.zeros(grid, dtype=np.int64)
        fields = {
            "weight_packed": tensor(pack_words(codes + half, bits)),
            "weight_scale": tensor(scales),
            "weight_shape": torch.tensor(shape),
        }
        if zeros == "packed":
            fields["weight_zero_point"] = tensor(pack_words((points + half).T, bits).T)
        elif zeros:
            fields["weight_zero_point"] = tensor(points.astype(np.int8))
        places = np.arange(shape[1]) // size
        if shuffled:
            places = random.permutation(places)
            fields["weight_g_idx"] = tensor(places.astype(np.int32))
        return fields, (codes - points[:, places]).astype(np.float32) * scales[:, places]

    return make


def mixed(random: np.random.Generator, shape: tuple[int, int]) -> Made:
    """Return a weight of 8 bits if it has 64 rows, else of 4 bits."""
    bits, group = (8, 0) if shape[0] == 64 else (4, 32)
    return packed_integers(bits, group)(random, shape)


def mxfp8(random: np.random.Generator, shape: tuple[int, int]) -> Made:
    codes = fp8_codes(random, shape)
    exponents = random.integers(117, 121, (shape[0] // 32, shape[1] // 32)).astype(np.uint8)
    fields = {
        "weight": tensor(codes).view(torch.float8_e4m3fn),
        "weight_scale_inv": tensor(exponents).view(torch.float8_e8m0fnu),
    }
    factors = np.exp2(exponents.astype(np.float32) - 127)
    return fields, E4M3[codes] * spread(factors, (32, 32), shape)


def nvfp4(random: np.random.Generator, shape: tuple[int, int]) -> Made:
    codes = random.integers(0, 16, shape)
    scales = random.integers(40, 100, (shape[0], shape[1] // 16)).astype(np.uint8)
    divisor = np.array([330.7], dtype=np.float32)
    fields = {
        "weight_packed": tensor((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)),
        "weight_scale": tensor(scales).view(torch.float8_e4m3fn),
        "weight_global_scale": tensor(divisor),
        "input_global_scale": torch.ones(1),
    }
    return fields, E2M1[codes] * spread(E4M3[scales] / divisor, (1, 16), shape)


def mxfp4(random: np.random.Generator, shape: tuple[int, int]) -> Made:
    codes = random.integers(0, 16, shape)
    exponents = random.integers(121, 126, (shape[0], shape[1] // 32)).astype(np.uint8)
    fields = {
        "weight_packed": tensor((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)),
        "weight_scale": tensor(exponents),
    }
    factors = np.exp2(exponents.astype(np.float32) - 127)
    return fields, E2M1[codes] * spread(factors, (1, 32), shape)


def awq(group: int) -> Maker:
    def make(random: np.random.Generator, shape: tuple[int, int]) -> Made:
        outputs, inputs = shape
        size = group or inputs
        codes = random.integers(0, 16, (inputs, outputs))
        zeros = random.integers(0, 16, (inputs // size, outputs))
        scales = scales_of(random, zeros.shape, 0.04).astype(np.float16)
        fields = {
            "qweight": tensor(awq_words(codes)),
            "qzeros": tensor(awq_words(zeros)),
            "scales": tensor(scales),
        }
        groups = np.arange(inputs) // size
        dense = (codes - zeros[groups]).astype(np.float32) * scales[groups].astype(np.float32)
        return fields, dense.T

    return make


def awq_words(codes: Array) -> Array:
    """Return words whose nibbles are, from the lowest on, the columns 0 2 4 6 1 3 5 7 of eight."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), dtype=np.uint32)
    for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= codes[:, column::8].astype(np.uint32) << np.uint32(4 * nibble)
    return words.view(np.int32)


def gptq(bits: int, group: int, *, version: int = 1, shuffled: bool = False) -> Maker:
    """Return a maker of GPTQ weights. Version 1 stores zeros less one."""

    def make(random: np.random.Generator, shape: tuple[int, int]) -> Made:
        outputs, inputs = shape
        size = group or inputs
        codes = random.integers(0, 1 << bits, (inputs, outputs))
        groups = np.arange(inputs) // size
        if shuffled:
            groups = random.permutation(groups)
        zeros = random.integers(0, 1 << bits, (groups.max() + 1, outputs))
        scales = scales_of(random, zeros.shape, 0.6 / (1 << bits)).astype(np.float16)
        fields = {
            "qweight": tensor(pack_words(codes.T, bits).T),
            "qzeros": tensor(pack_words(zeros, bits) if version == 2 else less_one(zeros, bits)),
            "scales": tensor(scales),
            "bias": torch.zeros(outputs, dtype=torch.float16),  # as AutoGPTQ stores it
        }
        if shuffled:
            fields["g_idx"] = tensor(groups.astype(np.int32))
        dense = (codes - zeros[groups]).astype(np.float32) * scales[groups].astype(np.float32)
        return fields, dense.T

    return make


def less_one(zeros: Array, bits: int) -> Array:
    """Return words of zeros less one; borrowed from the next code of a word, except for 3 bits."""
    if bits == 3:
        return pack_words((zeros - 1) % 8, bits)
    ones = pack_words(np.ones_like(zeros), bits)
    return (pack_words(zeros, bits).view(np.uint32) - ones.view(np.uint32)).view(np.int32)


def compressed(stored: str, **weights: Any) -> dict[str, Any]:
    """Return the entry of compressed-tensors for one group of modules."""
    group = {"targets": ["Linear"], "weights": {"type": "int", "symmetric": True, **weights}}
    return {
        "quant_method": "compressed-tensors",
        "format": stored,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


_GROUP = {"strategy": "group", "group_size": 32}
_FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
_GPTQ = {"quant_method": "gptq", "group_size": 32, "sym": False}

_MIXED = compressed("mixed-precision", num_bits=4, **_GROUP)
_MIXED["config_groups"]["group_0"]["targets"] = ["re:.*[.](k|v|gate|up)_proj$"]
_EIGHT = {"weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
_MIXED["config_groups"] |= {
    "group_1": {**_EIGHT, "format": "pack-quantized", "targets": ["Linear"]}
}

FORMATS: dict[str, Format] = {
    "ct-mixed": Format(_MIXED, mixed),
    "fp8-block": Format({**_FP8, "weight_block_size": [40, 48]}, fp8((40, 48))),
    "fp8-block-whole": Format({**_FP8, "weight_block_size": [32, 32]}, fp8((32, 32))),
    "fp8-tensor": Format({**_FP8, "weight_block_size": None}, fp8((0, 0), flat=True)),
    "fp8-exponents": Format({**_FP8, "weight_block_size": [32, 32], "scale_fmt": "ue8m0"}, mxfp8),
    "fp8-channel": Format({"quant_method": "fbgemm_fp8"}, fp8((1, 0), "weight_scale")),
    "ct-pack4": Format(compressed("pack-quantized", num_bits=4, **_GROUP), packed_integers(4, 32)),
    "ct-pack4-asymmetric": Format(
        compressed("pack-quantized", num_bits=4, symmetric=False, **_GROUP),
        packed_integers(4, 32, zeros="packed"),
    ),
    "ct-pack4-old-zeros-and-order": Format(
        compressed("pack-quantized", num_bits=4, symmetric=False, actorder="group", **_GROUP),
        packed_integers(4, 32, zeros="plain", shuffled=True),
        key="compression_config",
    ),
    "ct-pack8-channel": Format(
        compressed("pack-quantized", num_bits=8, strategy="channel"), packed_integers(8, 0)
    ),
    "ct-int8": Format(
        compressed("int-quantized", num_bits=8, strategy="channel"), integers(0, symmetric=True)
    ),
    "ct-int8-tensor": Format(
        compressed("naive-quantized", num_bits=8, strategy="tensor", symmetric=False),
        integers(0, symmetric=False, flat=True),
    ),
    "ct-int8-group": Format(
        compressed("int-quantized", num_bits=8, symmetric=False, **_GROUP),
        integers(32, symmetric=False),
    ),
    "ct-fp8": Format(
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        fp8((1, 0), "weight_scale"),
    ),
    "ct-fp8-block": Format(
        compressed("float-quantized", num_bits=8, strategy="block", block_structure=[32, 32]),
        fp8((32, 32), "weight_scale"),
    ),
    "ct-nvfp4": Format(
        compressed("nvfp4-pack-quantized", num_bits=4, strategy="tensor_group", group_size=16),
        nvfp4,
    ),
    "ct-mxfp4": Format(compressed("mxfp4-pack-quantized", num_bits=4, **_GROUP), mxfp4),
    "awq": Format({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm"}, awq(32)),
    "awq-row": Format({"quant_method": "awq", "bits": 4, "group_size": -1}, awq(0)),
    "gptq4": Format({**_GPTQ, "bits": 4}, gptq(4, 32)),
    "gptq8": Format({**_GPTQ, "bits": 8}, gptq(8, 32)),
    "gptq4-order": Format({**_GPTQ, "bits": 4, "desc_act": True}, gptq(4, 32, shuffled=True)),
    "gptq8-v2": Format(
        {**_GPTQ, "bits": 8, "checkpoint_format": "gptq_v2"}, gptq(8, 32, version=2)
    ),
    "gptq2-row": Format({**_GPTQ, "bits": 2, "group_size": -1}, gptq(2, 0)),
    "gptq3": Format({**_GPTQ, "bits": 3}, gptq(3, 32)),
}


def write(
    kind: str,
    family: str,
    folder: Path,
    *,
    is_plain: Callable[[str], bool] = lambda module: False,
    is_linear: Callable[[str, Tensor], bool] = lambda name, _: name.endswith("_proj.weight"),
    layers: int = 2,
    width: int = 1,
    **entry: Any,
) -> tuple[Path, Path]:
    """Write a checkpoint whose linear weights are of a format, and a plain one of their values.

    Args:
        kind: the format.
        family: the model's family.
        folder: an empty folder.
        is_plain: returns whether the weight of a module is stored as it is.
        is_linear: returns whether a tensor is a linear weight.
        width: how many times as wide as others the model is.
        entry: more keys of the configuration's entry.
    """
    stored, plain = folder / "stored", folder / "plain"
    save_tiny(family, plain, layers=layers, max_shard_size="1GB", tied=False, width=width)
    shutil.copytree(plain, stored)
    form = FORMATS[kind]
    path = stored / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), form.key: {**form.entry, **entry}}))
    (file,) = plain.glob("*.safetensors")
    dense, fields = load_file(file), dict[str, Tensor]()
    random = np.random.default_rng(0)
    for name, weight in dense.items():
        if not is_linear(name, weight) or is_plain(name.removesuffix(".weight")):
            fields[name] = weight
            continue
        made, values = form.make(random, (weight.shape[0], weight.shape[1]))
        fields |= {name.removesuffix("weight") + ending: made[ending] for ending in made}
        dense[name] = tensor(values)
    fields["model.layers.0.self_attn.k_scale"] = torch.ones(1)  # of a quantized KV cache
    save_file(dense, file)
    save_file(fields, stored / file.name)
    return stored, plain
