"""Tests of 4-bit weights: packed ones expand to bitsandbytes' values, int4 is close to dense."""

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from engine.errors import ModelError
from engine.weights import packing
from engine.weights.formats import int4, mxfp4, nf4
from engine.weights.formats.linear import best_kernel, substitute, substitute_bytes
from engine.weights.formats.tensor_cores import compute_dtype
from engine.weights.layout import lay_out
from engine.weights.safetensors import StoredRows
from engine.weights.units import CheckpointUnits
from tests.engine import int4_codes
from tests.engine.checkpoints import save_tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def meta_model(folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = auto.from_config(AutoConfig.from_pretrained(folder), dtype=dtype)
    return model


def read(units: CheckpointUnits, index: int) -> dict[str, Tensor]:
    layout = units.layouts[index]
    buffer = torch.empty(layout.nbytes, dtype=torch.uint8)
    units.read(index, buffer)
    return layout.views(buffer)


def read_dense(units: CheckpointUnits, index: int, dtype: torch.dtype) -> dict[str, Tensor]:
    layout = packing.dense_layout(units.layouts[index], dtype)
    scratch = torch.full((layout.nbytes,), 255, dtype=torch.uint8)
    return packing.expand(read(units, index), layout.views(scratch))


def bitsandbytes_values(weight: Tensor) -> Tensor:
    """Return bitsandbytes' dense values of a weight in rows of one block, which are right."""
    codes, state = bnb.quantize_4bit(weight.reshape(-1, 64), quant_type="nf4", blocksize=64)
    return bnb.dequantize_4bit(codes, state).view(weight.shape)


# A target quantized when it is read


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_linear_weights_of_layers_are_packed_as_nf4(dtype: torch.dtype, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, dtype=dtype, layers=1)
    units = CheckpointUnits(tmp_path, meta_model(tmp_path, dtype), dtype, "nf4")
    full = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype).state_dict()
    found = read_dense(units, 0, dtype)
    assert "self_attn.q_proj.weight.nf4" in read(units, 0)
    for name, tensor in found.items():
        expected = full[f"model.layers.0.{name}"]
        # 64 inputs are one block. down_proj has 96 and stays dense, as norms do.
        quantized = expected.dim() == 2 and expected.shape[1] == 64
        assert torch.equal(tensor, bitsandbytes_values(expected) if quantized else expected), name
    assert {f"model.layers.0.{name}" for name in found} == {n for n in full if ".0." in n}


def test_head_and_embedding_stay_dense(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=1)
    dtype = torch.float32
    units = CheckpointUnits(tmp_path, meta_model(tmp_path, dtype), dtype, "nf4")
    full = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    assert torch.equal(read(units, 1)["weight"], full["lm_head.weight"])
    embedding = units.other_tensors()["model.embed_tokens.weight"]
    assert isinstance(embedding, StoredRows)
    assert torch.equal(embedding.load(), full["model.embed_tokens.weight"])


def test_experts_are_packed_as_nf4_but_not_their_router(tmp_path: Path) -> None:
    save_tiny("qwen3_moe", tmp_path, layers=1)
    dtype = torch.float32
    units = CheckpointUnits(tmp_path, meta_model(tmp_path, dtype), dtype, "nf4")
    full = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    found = read_dense(units, 0, dtype)
    for name in ("mlp.experts.gate_up_proj", "mlp.experts.down_proj"):
        expected = bitsandbytes_values(full[f"model.layers.0.{name}"])
        assert f"{name}.nf4" in read(units, 0) and torch.equal(found[name], expected)
    assert torch.equal(found["mlp.gate.weight"], full["model.layers.0.mlp.gate.weight"])


def test_expanding_does_not_copy_dense_tensors(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=1)
    dtype = torch.float32
    units = CheckpointUnits(tmp_path, meta_model(tmp_path, dtype), dtype, "nf4")
    views = read(units, 0)
    layout = packing.dense_layout(units.layouts[0], dtype)
    found = packing.expand(views, layout.views(torch.empty(layout.nbytes, dtype=torch.uint8)))
    name = "input_layernorm.weight"
    assert found[name].data_ptr() == views[name].data_ptr()
    assert name not in {field.name for field in layout.fields}
    assert layout.fields and not packing.dense_layout(units.layouts[1], dtype).fields


def test_weights_expanded_in_pieces_have_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(43, 128)  # the last piece is one row
    fields = nf4.packed_tensors("", tuple(weight.shape)).values()
    codes, absmax = (torch.empty(shape, dtype=dtype) for dtype, shape in fields)
    monkeypatch.setattr(nf4, "_CHUNK_WEIGHTS", 7 * 128)
    nf4.quantize(weight, codes, absmax)
    out = torch.empty_like(weight)
    nf4.dequantize(codes, absmax, out)
    assert torch.equal(out, bitsandbytes_values(weight))


# A checkpoint that bitsandbytes quantized


def quantize_checkpoint(folder: Path, *, nested: bool) -> dict[str, Tensor]:
    """Store the linear weights of a checkpoint as bitsandbytes does; return their dense values."""
    dense: dict[str, Tensor] = {}
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name]
        codes, state = bnb.quantize_4bit(weight, quant_type="nf4", compress_statistics=nested)
        tensors[name] = codes
        parts = state.as_dict(packed=True)
        tensors |= {f"{name}.{part}": value.contiguous() for part, value in parts.items()}
        state.shape = torch.Size((weight.numel() // 64, 64))  # for this shape bitsandbytes is right
        dense[name] = bnb.dequantize_4bit(codes, state).view(weight.shape)
    save_file(tensors, path)
    set_quantization(folder, quant_method="bitsandbytes", load_in_4bit=True, kind="nf4")
    return dense


def set_quantization(folder: Path, kind: str | None = None, **config: object) -> None:
    path = folder / "config.json"
    if kind:
        config["bnb_4bit_quant_type"] = kind
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": config}))


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_bitsandbytes_checkpoint_is_read(
    dtype: torch.dtype, nested: bool, tmp_path: Path
) -> None:
    save_tiny("qwen2", tmp_path, dtype=dtype, layers=2, max_shard_size="1GB")
    expected = quantize_checkpoint(tmp_path, nested=nested)
    units = CheckpointUnits(tmp_path, meta_model(tmp_path, dtype), dtype)
    for index in range(2):
        layout = units.layouts[index]
        found = read_dense(units, index, dtype)
        assert "self_attn.q_proj.weight.nf4" in {field.name for field in layout.fields}
        # 96 inputs are not whole blocks: only this weight is expanded when read.
        assert "mlp.down_proj.weight" in {field.name for field in layout.fields}
        for name, tensor in expected.items():
            if name.startswith(layout.name):
                value = found[name.removeprefix(f"{layout.name}.")]
                assert value.dtype == dtype and torch.equal(value, tensor), name


def test_a_quantized_head_stays_packed(tmp_path: Path) -> None:
    save_tiny("qwen2", tmp_path, layers=1, max_shard_size="1GB", tied=False)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    expected = bitsandbytes_values(tensors["lm_head.weight"])
    codes, state = bnb.quantize_4bit(tensors["lm_head.weight"], quant_type="nf4")
    parts = state.as_dict(packed=True).items()
    save_file(
        tensors | {"lm_head.weight": codes} | {f"lm_head.weight.{k}": v for k, v in parts}, path
    )
    set_quantization(tmp_path, quant_method="bitsandbytes", load_in_4bit=True, kind="nf4")
    dtype = torch.float32
    units = CheckpointUnits(tmp_path, meta_model(tmp_path, dtype), dtype)
    assert read(units, 1).keys() == {"weight.nf4", "weight.absmax"}
    assert torch.equal(read_dense(units, 1, dtype)["weight"], expected)
    assert torch.equal(read(units.expanded(), 1)["weight"], expected)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 5}, "'gptq'"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "'bitsandbytes'"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True, "kind": "fp4"}, "fp4"),
        ({"quant_method": "quanto"}, "'quanto'"),
    ],
)
def test_other_quantizations_are_refused_by_name(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, layers=1)
    set_quantization(tmp_path, **config)
    with pytest.raises(ModelError, match=f"quantization_config.quant_method.*{message}"):
        CheckpointUnits(tmp_path, meta_model(tmp_path, torch.float32), torch.float32)


def test_the_error_of_an_unreadable_quant_state_names_it(tmp_path: Path) -> None:
    save_tiny("qwen2", tmp_path, layers=1, max_shard_size="1GB")
    quantize_checkpoint(tmp_path, nested=False)
    (path,) = tmp_path.glob("*.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight.quant_state.bitsandbytes__nf4"
    save_file(load_file(path) | {name: torch.zeros(3, dtype=torch.uint8)}, path)
    with pytest.raises(ModelError, match=f"{name}: unreadable"):
        CheckpointUnits(tmp_path, meta_model(tmp_path, torch.float32), torch.float32)


def test_the_error_of_missing_maxima_names_the_weight(tmp_path: Path) -> None:
    save_tiny("qwen2", tmp_path, layers=1, max_shard_size="1GB")
    quantize_checkpoint(tmp_path, nested=False)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    del tensors["model.layers.0.self_attn.q_proj.weight.absmax"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"q_proj.weight.*not its weight and absmax"):
        CheckpointUnits(tmp_path, meta_model(tmp_path, torch.float32), torch.float32)


def test_the_error_of_incomplete_double_quantization_names_the_weight(tmp_path: Path) -> None:
    save_tiny("qwen2", tmp_path, layers=1, max_shard_size="1GB")
    quantize_checkpoint(tmp_path, nested=True)
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    weight = "model.layers.0.self_attn.q_proj.weight"
    del tensors[f"{weight}.nested_quant_map"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=f"incomplete double quantization of {weight}"):
        CheckpointUnits(tmp_path, meta_model(tmp_path, torch.float32), torch.float32)


# gpt-oss


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_mxfp4_expands_to_the_same_bits_as_in_transformers(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (3, 50, 4, 16), dtype=torch.uint8, generator=generator)
    scales = torch.randint(0, 256, (3, 50, 4), dtype=torch.uint8, generator=generator)
    out = torch.empty(mxfp4.expanded_shape(tuple(blocks.shape)), dtype=dtype)
    mxfp4.expand(blocks, scales, out)
    expected = convert_moe_packed_tensors(blocks, scales, dtype=dtype)
    assert torch.equal(out.view(torch.uint8), expected.view(torch.uint8))


def mxfp4_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Write a gpt-oss checkpoint as it is published; return the dense values of its experts."""
    save_tiny("gpt_oss", folder, dtype=torch.bfloat16, layers=1, max_shard_size="1GB")
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    dense: dict[str, Tensor] = {}
    for name in [n for n in tensors if n.endswith(("gate_up_proj", "down_proj"))]:
        experts, inputs, outputs = tensors.pop(name).shape
        blocks = torch.randint(0, 256, (experts, outputs, inputs // 32, 16), dtype=torch.uint8)
        scales = torch.randint(115, 125, blocks.shape[:-1], dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        dense[name] = convert_moe_packed_tensors(blocks, scales, dtype=torch.bfloat16)
    save_file(tensors, path)
    set_quantization(folder, quant_method="mxfp4")
    return dense


@pytest.mark.parametrize("packed", [True, False])
def test_a_gpt_oss_checkpoint_has_the_values_of_transformers(packed: bool, tmp_path: Path) -> None:
    expected = mxfp4_checkpoint(tmp_path)
    dtype = torch.bfloat16
    units = CheckpointUnits(tmp_path, meta_model(tmp_path, dtype), dtype)
    units = units if packed else units.expanded()
    assert ("mlp.experts.down_proj.mxfp4_blocks" in read(units, 0)) == packed
    found = read_dense(units, 0, dtype)
    assert len(expected) == 2
    for name, tensor in expected.items():
        assert torch.equal(found[name.removeprefix("model.layers.0.")], tensor), name


def test_gpt_oss_blocks_without_scales_are_refused(tmp_path: Path) -> None:
    name = next(iter(mxfp4_checkpoint(tmp_path)))
    (path,) = tmp_path.glob("*.safetensors")
    tensors = load_file(path)
    del tensors[f"{name}_scales"]
    save_file(tensors, path)
    with pytest.raises(ModelError, match=f"{name}_blocks has no {name}_scales"):
        CheckpointUnits(tmp_path, meta_model(tmp_path, torch.bfloat16), torch.bfloat16)


# Substitutes


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize(("group", "bound"), [(32, 0.080), (64, 0.092)])
def test_the_int4_error_on_normal_weights_is_bounded(group: int, bound: float) -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    quantized = int4_codes.quantize(weight, group)
    assert 0.05 < relative_error(quantized.dense(), weight) < bound


def test_int4_of_constant_and_one_sided_weights_is_close() -> None:
    """Groups of equal weights have no range, and groups far from zero need their zero point."""
    weight = torch.cat([torch.zeros(16, 64), torch.full((16, 64), 3.0), torch.rand(16, 64) + 5])
    dense = int4_codes.quantize(weight, 32).dense()
    assert torch.equal(dense[:32], weight[:32])
    assert (dense[32:] - weight[32:]).abs().max() < 1 / 15


def test_int4_quantized_in_pieces_has_the_same_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(50, 64)
    whole = int4_codes.quantize(weight, 32)
    monkeypatch.setattr(int4, "_CHUNK_WEIGHTS", 7 * 64)
    pieces = int4_codes.quantize(weight, 32)
    assert torch.equal(whole.codes, pieces.codes)
    assert torch.equal(whole.scales_and_zeros, pieces.scales_and_zeros)


@pytest.mark.parametrize("rows", [16, 64, 80, 256, 304])
def test_int4_packed_in_pieces_has_the_same_bytes(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = int4_codes.quantize(torch.randn(rows, 64), 32)
    whole = torch._convert_weight_to_int4pack_for_cpu(quantized.codes.int(), 1)
    monkeypatch.setattr(int4, "_CHUNK_WEIGHTS", 130 * 64)
    assert torch.equal(
        int4.Int4Linear(quantized.pairs, quantized.scales_and_zeros, None).weight, whole
    )


@pytest.mark.parametrize("rows", [1, 7, 64])
@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_int4_linear_multiplies_the_quantized_weight(
    rows: int, group: int, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(128, 256, dtype=dtype), torch.randn(128, dtype=dtype)
    inputs = torch.randn(1, rows, 256, dtype=dtype)
    quantized = int4_codes.quantize(weight, group)
    layer = int4.Int4Linear(quantized.pairs, quantized.scales_and_zeros, bias)
    dense = quantized.dense()
    exact = inputs.float() @ dense.T + bias.float()
    found = layer(inputs)
    assert found.dtype == dtype and found.shape == (1, rows, 128)
    assert relative_error(found, exact) < 0.006  # bfloat16 activations
    assert relative_error(found, inputs.float() @ weight.float().T + bias.float()) < 0.1


@pytest.mark.parametrize("rows", [1, 7, 64])
def test_nf4_linear_multiplies_the_quantized_weight(rows: int) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 128), torch.randn(96)
    inputs = torch.randn(1, rows, 128)
    found = substitute(weight, bias, 32, CPU, "nf4")(inputs)
    assert found.dtype == torch.float32 and found.shape == (1, rows, 96)
    assert relative_error(found, inputs @ bitsandbytes_values(weight).T + bias) < 0.01


@pytest.mark.parametrize("kernel", ["int4", "nf4"])
def test_shapes_that_a_kernel_does_not_support_stay_dense(kernel: Any) -> None:
    weight, bias = torch.randn(50, 100), torch.randn(50)
    layer = substitute(weight, bias, 32, CPU, kernel)
    assert isinstance(layer, nn.Linear) and torch.equal(layer.weight, weight)
    assert layer.bias is not None and torch.equal(layer.bias, bias)
    assert layer(torch.randn(3, 100)).shape == (3, 50)


@pytest.mark.parametrize("kernel", ["int4", "nf4"])
@pytest.mark.parametrize("shape", [(64, 64), (50, 100)])
def test_a_substitute_shares_no_memory_with_its_weight(kernel: Any, shape: tuple[int, int]) -> None:
    """It is made from views of memory that the next unit overwrites."""
    weight, bias = torch.randn(shape).bfloat16(), torch.randn(shape[0]).bfloat16()
    layer, inputs = substitute(weight, bias, 32, CPU, kernel), torch.randn(2, shape[1]).bfloat16()
    expected = layer(inputs)
    weight.zero_()
    bias.zero_()
    assert torch.equal(layer(inputs), expected)


@pytest.mark.parametrize("kernel", ["int4", "nf4"])
def test_a_llama_with_substitutes_computes_with_their_dense_values(
    kernel: Any, tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, dtype=torch.float32, layers=2)
    model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    layers = model.model.layers
    substitutes: dict[str, nn.Module] = {}
    for path, layer in layers.named_modules():
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach().clone()
            substitutes[path] = substitute(weight, layer.bias, 32, CPU, kernel)
            if isinstance(substitutes[path], int4.Int4Linear):
                layer.weight.data = int4_codes.quantize(weight, 32).dense()
            elif isinstance(substitutes[path], nf4.Nf4Linear):
                layer.weight.data = bitsandbytes_values(weight)
    ids = torch.arange(5, 25).unsqueeze(0)
    with torch.no_grad():
        expected = model(ids).logits
        for path, layer_of_draft in substitutes.items():
            layers.set_submodule(path, layer_of_draft)
        found = model(ids).logits
    assert {"int4": int4.Int4Linear, "nf4": nf4.Nf4Linear}[kernel] in map(
        type, substitutes.values()
    )
    assert relative_error(found, expected) < 0.03  # bfloat16 activations


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("packed", [None, "nf4"])
def test_substitute_bytes_bound_the_memory_of_substitutes(
    packed: Any, group: int, tmp_path: Path
) -> None:
    dtype = torch.bfloat16
    save_tiny("llama", tmp_path, dtype=dtype, layers=1)
    units = CheckpointUnits(tmp_path, meta_model(tmp_path, dtype), dtype, packed)
    views = read_dense(units, 0, dtype)
    for kernel in ("int4", "nf4"):
        taken = sum(tensor.nbytes for tensor in views.values() if tensor.dim() == 1)
        for weight in (tensor for tensor in views.values() if tensor.dim() == 2):
            layer = substitute(weight, None, group, CPU, kernel)
            layer(torch.zeros(1, weight.shape[1], dtype=torch.bfloat16))
            if isinstance(layer, nf4.Nf4Linear):
                state = layer.inner.weight.quant_state
                taken += layer.inner.weight.nbytes + state.absmax.nbytes
            elif isinstance(layer, int4.Int4Linear):
                taken += layer.weight.nbytes + layer.scales_and_zeros.nbytes
            else:
                taken += weight.nbytes
        assert taken <= substitute_bytes(units.layouts[0], group, CPU, kernel), kernel


@pytest.mark.parametrize(
    ("device", "capability", "expected"),
    [
        (CPU, None, "int4"),
        (torch.device("cuda"), (8, 0), "int4"),
        (torch.device("cuda"), (7, 5), "nf4"),  # the int4 product needs newer tensor cores
    ],
)
def test_int4_is_chosen_unless_nf4_supports_more(
    device: torch.device, capability: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert best_kernel([(128, 128), (64, 128)], 64, device) == expected
    assert best_kernel([(16, 96)], 64, device) == "int4"  # no kernel does: the weight stays dense
    monkeypatch.setattr(nf4, "is_available", lambda: False)
    assert best_kernel([(128, 128)], 64, device) == "int4"


@pytest.mark.parametrize(
    ("device", "capability", "kernel", "bits"),
    [
        (CPU, None, "int4", 5),  # with scale and zero of each group of 32
        (CPU, None, "nf4", 4.5),
        (CUDA, (8, 0), "int4", 5),
        (CUDA, (7, 5), "nf4", 4.5),
        (CUDA, (7, 5), "int4", 16),  # dense
        (None, None, "int4", 5),
    ],
)
def test_the_bytes_of_a_substitute_are_those_of_the_devices_kernel(
    device: torch.device | None,
    capability: Any,
    kernel: Any,
    bits: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    layout = lay_out("unit", {"a.weight": (torch.bfloat16, (128, 256))})
    assert substitute_bytes(layout, 32, device, kernel) == 128 * 256 * bits / 8


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), "float16"), ((8, 6), "bfloat16")])
def test_an_older_card_computes_nf4_in_float16(
    capability: Any, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert compute_dtype(CUDA) == getattr(torch, dtype)
    assert compute_dtype(CPU) == torch.bfloat16
