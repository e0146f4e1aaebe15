"""Tests that quantized checkpoints are read as the definitions of their formats say."""

import json
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig

from engine.compiled.compiler import switched_off
from engine.errors import ModelError
from engine.planning.blueprint import Blueprint
from engine.spec import DraftSpec, ModelSpec, TargetSpec
from engine.weights import packing
from engine.weights.family import read_config
from engine.weights.formats import groups, scaled_codes
from engine.weights.safetensors import Checkpoint
from engine.weights.sources import stack_sources, transpose_source
from engine.weights.stored_format import find_stored
from engine.weights.units import CheckpointUnits
from tests.engine.checkpoints import save_tiny
from tests.engine.models import PLAIN, add_tokenizer, exact, load, prompt, request, run
from tests.engine.weights.formats.quantized_files import FORMATS, compressed, write
from tests.engine.weights.formats.test_linear import meta_model, read, read_dense, set_quantization

DTYPE = torch.float32


def units_of(folder: Path, slice_bytes: int | None = None) -> CheckpointUnits:
    model = meta_model(folder, DTYPE)
    return CheckpointUnits(folder, model, DTYPE, slice_bytes=slice_bytes)


def values_of(units: CheckpointUnits, dtype: torch.dtype = DTYPE) -> dict[str, Tensor]:
    """Return the dense values of all units, with packed ones expanded as in a pass."""
    return {
        f"{units.layouts[index].name}.{name}": value
        for index in range(len(units.layouts))
        for name, value in read_dense(units, index, dtype).items()
    }


def is_packed(units: CheckpointUnits) -> bool:
    return any(".scales" in field.name for unit in units.layouts for field in unit.fields)


@pytest.mark.parametrize("is_compiled", [True, False], ids=["compiled", "torch"])
@pytest.mark.parametrize("kind", FORMATS)
def test_weights_have_the_bits_of_the_formats_definition(
    kind: str, is_compiled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, plain = write(kind, "llama", tmp_path)
    monkeypatch.setattr(groups, "_PIECE_WEIGHTS", 5 * 64)  # several pieces, the last one smaller
    monkeypatch.setattr(scaled_codes, "_COMPILED_VALUES", 7 * 64)
    monkeypatch.setattr(packing, "CPU_VALUES", 7 * 64)
    expected, units = values_of(units_of(plain)), units_of(stored)
    assert is_packed(units) == (kind != "gptq3") and not is_packed(units.expanded())
    with nullcontext() if is_compiled else switched_off():
        for found in values_of(units), values_of(units.expanded()):
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                assert torch.equal(found[name].view(torch.int32), value.view(torch.int32)), name


@pytest.mark.parametrize(
    ("kind", "reasons"),
    [
        ("gptq3", "14 because 3-bit codes do not fill bytes"),
        # Scales of smaller blocks, which divide the weight, would add more than 1 % of its bytes.
        (
            "fp8-block",
            "4 because blocks of 40 x 48 do not divide 64 x 64, "
            "4 because blocks of 40 x 48 do not divide 96 x 64",
        ),
        ("awq", ""),
    ],
)
def test_the_reasons_for_weights_without_a_packed_form_are_told(
    kind: str, reasons: str, tmp_path: Path
) -> None:
    stored, _ = write(kind, "llama", tmp_path)
    assert units_of(stored).expanded_when_read == (
        f"weights are expanded when read: {reasons}" if reasons else ""
    )


@pytest.mark.parametrize("slice_bytes", [None, 1])
@pytest.mark.parametrize(
    "kind",
    [
        "fp8-block-whole",
        "fp8-tensor",
        "ct-int8-group",
        "ct-nvfp4",
        "ct-pack4-asymmetric",
        "ct-pack4-old-zeros-and-order",
        "awq",
        "gptq4-order",
    ],
)
def test_experts_that_are_stored_one_by_one_are_merged(
    kind: str, slice_bytes: int | None, tmp_path: Path
) -> None:
    stored, plain = write(kind, "qwen3_moe", tmp_path)
    units, expected = units_of(stored, slice_bytes), values_of(units_of(plain, slice_bytes))
    fused = [f.name for unit in units.layouts for f in unit.fields if "gate_up_proj." in f.name]
    assert fused and not units.expanded_when_read
    for found in values_of(units), values_of(units.expanded()):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", ["fp8-block", "ct-pack4", "ct-nvfp4", "awq", "gptq4"])
def test_answers_are_those_of_the_plain_checkpoint(kind: str, tmp_path: Path) -> None:
    stored, plain = write(kind, "llama", tmp_path)
    asked = [request("g", prompt(8), max_tokens=8, logprobs=2)]
    answers = []
    for folder in (stored, plain):
        add_tokenizer(folder)
        answers.append(exact(run(load(folder, PLAIN), asked)))
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        ("qwen3_5_text", "awq"),
        ("lfm2", "gptq4"),
        pytest.param("falcon_h1", "ct-pack4", marks=pytest.mark.slow),
        pytest.param("qwen3_next", "fp8-block-whole", marks=pytest.mark.slow),
        pytest.param("granitemoehybrid", "gptq4", marks=pytest.mark.slow),
        pytest.param("nemotron_h", "fp8-block-whole", marks=pytest.mark.slow),
    ],
)
def test_hybrids_of_quantized_weights_have_the_answers_of_the_plain_checkpoint(
    family: str, kind: str, tmp_path: Path
) -> None:
    stored, plain = write(kind, family, tmp_path, is_linear=is_divisible, layers=3)
    asked = [request("g", prompt(70), max_tokens=8, logprobs=2)]
    for folder in (stored, plain):
        add_tokenizer(folder)
    engine = load(stored, DraftSpec("ngram"))
    assert "weights (" in engine.info.plan  # how the quantized ones travel
    assert exact(run(engine, asked)) == exact(run(load(plain, PLAIN), asked))


def is_divisible(name: str, weight: Tensor) -> bool:
    """Return whether a tensor is a matrix of a layer whose sides blocks of 32 divide."""
    return ".layers." in name and weight.dim() == 2 and not any(s % 32 for s in weight.shape)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", ["fp8-block", "ct-nvfp4", "ct-int8-group", "awq", "gptq4-order"])
def test_values_are_rounded_once_to_the_type_of_the_target(
    kind: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    stored, plain = write(kind, "llama", tmp_path)
    units = CheckpointUnits(stored, meta_model(stored, dtype), dtype)
    expected = read(units_of(plain), 0)
    for found in read_dense(units, 0, dtype), read(units.expanded(), 0):
        for name, value in expected.items():
            assert torch.equal(found[name], value.to(dtype)), name


def test_fused_fp8_experts_are_read_slice_by_slice(tmp_path: Path) -> None:
    stored, plain = write("fp8-block", "gpt_oss", tmp_path)
    (file,) = plain.glob("*.safetensors")
    dense, fields = load_file(file), load_file(stored / file.name)
    for name in [n for n in dense if n.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, rows, columns = dense[name].shape
        codes = dense[name].to(torch.float8_e4m3fn)
        scales = torch.rand(experts, -(-rows // 40), -(-columns // 48))
        fields |= {name: codes, f"{name}_scale_inv": scales}
        spread = scales.repeat_interleave(40, 1)[:, :rows].repeat_interleave(48, 2)[..., :columns]
        dense[name] = codes.float() * spread
    save_file(dense, file)
    save_file(fields, stored / file.name)
    units, expected = units_of(stored, 1), values_of(units_of(plain, 1))
    assert "gate_up_proj.e4m3" in {
        field.name.removeprefix("mlp.experts.") for unit in units.layouts for field in unit.fields
    }
    for found in values_of(units), values_of(units.expanded()):
        assert len(found) > len(values_of(units_of(plain)))
        for name, value in expected.items():
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("kind", ["fp8-block-whole", "awq", "gptq4-order"])
def test_weights_that_are_stored_rearranged_are_expanded_when_read(
    kind: str, tmp_path: Path
) -> None:
    stored, plain = write(kind, "llama", tmp_path)
    up, gate = (f"model.layers.0.mlp.{part}_proj.weight" for part in ("up", "gate"))
    values = values_of(units_of(plain))
    found = find_stored(AutoConfig.from_pretrained(stored), Checkpoint(stored))
    turned, both = transpose_source(found[up], 0, 1), stack_sources([found[gate], found[up]])
    for source, expected in (
        (turned, values[up].T),
        (both, torch.cat([values[gate], values[up]])),
    ):
        out = torch.empty(source.shape)
        source.fill(out)
        assert torch.equal(out, expected) and not source.packed and source.why_expanded


# Configurations

Q = "quantization_config"


@pytest.mark.parametrize(
    ("algorithm", "is_refused"), [("FP8", True), ("NVFP4", True), (8, True), (None, False)]
)
def test_weights_of_modelopt_are_refused_by_name(
    algorithm: Any, is_refused: bool, tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, layers=1)
    entry = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(entry))
    if not is_refused:  # the KV cache alone
        read_config(tmp_path)
        return
    message = rf"hf_quant_config\.json: quantization.quant_algo: {algorithm!r}: .*ModelOpt"
    with pytest.raises(ModelError, match=message):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"quantization": {"group_size": 64, "bits": 4}}, "quantization: the format of MLX"),
        ({Q: {"bits": 4}, "quantization": {"bits": 4}}, "quantization: the format of MLX"),
        ({Q: {"bits": 4}}, "quantization_config without quant_method"),
        ({Q: {"quant_method": "modelopt"}}, "'modelopt'"),
        ({Q: {"quant_method": "gptq", "bits": 5}}, "'gptq' with bits 5 instead of 2, 3, 4 or 8"),
        ({Q: {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}}, "'marlin'"),
        ({Q: {"quant_method": "gptq", "bits": 4, "is_marlin_format": True}}, "'marlin'"),
        ({Q: {"quant_method": "gptq", "bits": 4, "group_size": "a"}}, "group_size: .*'a'"),
        ({Q: {"quant_method": "gptq", "bits": "four"}}, "'gptq' with bits 'four'"),
        ({Q: {"quant_method": "gptq", "bits": "4.5"}}, "'gptq' with bits '4.5'"),
        ({Q: {"quant_method": "gptq", "bits": 4, "desc_act": "maybe"}}, f"{Q}.desc_act: true or"),
        ({Q: {"quant_method": "gptq", "bits": 4, "group_size": "0"}}, f"{Q}.group_size: .* 0"),
        ({Q: {"quant_method": "awq", "bits": 3}}, "'awq' with bits 3"),
        ({Q: {"quant_method": "awq", "bits": 4, "version": "gemv"}}, "'awq' of version 'gemv'"),
        ({Q: {"quant_method": "awq", "backend": "llm-awq"}}, "llm-awq"),
        ({Q: {"quant_method": "fp8", "weight_block_size": [0, 1]}}, "weight_block_size: two"),
        ({Q: {"quant_method": "fp8", "expert_dtype": "fp4"}}, "expert_dtype 'fp4'"),
        ({Q: compressed("marlin-24", num_bits=4)}, "of format 'marlin-24'"),
        ({Q: compressed("pack-quantized", num_bits=3)}, "with num_bits 3"),
        ({Q: compressed("pack-quantized", num_bits=4, strategy="token")}, "strategy 'token'"),
        ({"compression_config": compressed("dense", num_bits=8)}, "of format 'dense'"),
        ({Q: {"quant_method": "compressed-tensors", "config_groups": [1]}}, "an object is"),
        ({Q: {"quant_method": "compressed-tensors", "transform_config": {"a": {}}}}, "transform"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    entry: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, layers=1)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entry}))
    blueprint = Blueprint(ModelSpec("m", TargetSpec(str(tmp_path))), tmp_path)
    where = rf"^{re.escape(str(path))}: .*"
    with pytest.raises(ModelError, match=where + message):
        blueprint.checkpoint_units()
    for weights in tmp_path.glob("*.safetensors"):
        weights.unlink()
    with pytest.raises(ModelError, match=where + message):
        assert blueprint.outlines


def as_text(value: Any) -> Any:
    """Return a configuration whose numbers and flags are written as text."""
    if isinstance(value, dict):
        return {key: as_text(own) for key, own in value.items()}
    if isinstance(value, list):
        return [as_text(own) for own in value]
    return str(value) if isinstance(value, int) else value


@pytest.mark.parametrize(
    "kind", ["gptq4", "gptq4-order", "awq", "fp8-block", "ct-pack4-asymmetric", "ct-int8-group"]
)
def test_numbers_and_flags_may_be_written_as_text(kind: str, tmp_path: Path) -> None:
    stored, plain = write(kind, "llama", tmp_path)
    path = stored / "config.json"
    values = json.loads(path.read_text())
    text = as_text(values[Q])
    assert text != values[Q]
    path.write_text(json.dumps(values | {Q: text}))
    expected, found = values_of(units_of(plain)), values_of(units_of(stored))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


# Damaged checkpoints

M = "model.layers.0.mlp.up_proj"


def drop(ending: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(f"{M}.{ending}")


def cut(ending: str) -> Callable[[dict[str, Tensor]], None]:
    def damage(tensors: dict[str, Tensor]) -> None:
        value = tensors[f"{M}.{ending}"]
        tensors[f"{M}.{ending}"] = value[:-1].clone() if value.dim() else value.repeat(3)

    return damage


def put(ending: str, value: Tensor) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({f"{M}.{ending}": value})


@pytest.mark.parametrize(
    ("kind", "damage", "message"),
    [
        ("fp8-block", drop("weight_scale_inv"), r"up_proj.weight has no .*weight_scale_inv or"),
        ("fp8-block", cut("weight_scale_inv"), r"weight_scale_inv has shape \[2, 2\].*\[3, 2\]"),
        ("fp8-tensor", cut("weight_scale_inv"), r"weight_scale_inv has shape \[3\]"),
        ("ct-int8", drop("weight_scale"), r"up_proj.weight has no .*up_proj.weight_scale"),
        ("ct-int8-group", drop("weight_zero_point"), r"has no .*weight_zero_point"),
        ("ct-int8-group", cut("weight_zero_point"), r"weight_zero_point has shape \[95, 2\]"),
        ("ct-pack4", cut("weight_packed"), r"weight_shape says \[96, 64\], but .*\[95, 8\]"),
        ("ct-pack4", put("weight_shape", torch.tensor([96, 1])), r"weight_shape says \[96, 1\]"),
        ("ct-pack4", drop("weight_shape"), r"weight_packed has no .*weight_shape"),
        ("ct-pack4", cut("weight_scale"), r"weight_scale has shape \[95, 2\].*\[96, 2\]"),
        ("ct-pack4-asymmetric", drop("weight_zero_point"), r"has no .*weight_zero_point"),
        ("ct-pack4-asymmetric", cut("weight_zero_point"), r"zero_point has shape \[11, 2\]"),
        (
            "ct-pack4-old-zeros-and-order",
            put("weight_g_idx", torch.full((64,), 2, dtype=torch.int32)),
            r"weight_g_idx names groups 2 to 2, but the scales have groups 0 to 1",
        ),
        ("ct-nvfp4", drop("weight_global_scale"), r"has no .*weight_global_scale"),
        ("ct-nvfp4", cut("weight_scale"), r"weight_scale has shape \[95, 4\]"),
        ("awq", drop("qzeros"), r"up_proj.qweight has no .*up_proj.qzeros"),
        ("awq", cut("scales"), r"up_proj.scales has shape \[1, 96\].*\[2, 96\]"),
        ("awq", put("qweight", torch.zeros(64, 12)), "a matrix of int32 is expected"),
        ("awq", put("qweight", torch.zeros(48, 12, dtype=torch.int32)), "32 .* does not divide"),
        ("gptq4", drop("qzeros"), r"up_proj.qweight has no .*up_proj.qzeros"),
        ("gptq4", cut("qzeros"), r"up_proj.qzeros has shape \[1, 12\].*\[2, 12\]"),
        ("gptq4-order", drop("g_idx"), r"up_proj.qweight has no .*up_proj.g_idx"),
        (
            "gptq4-order",
            put("g_idx", torch.full((64,), -1, dtype=torch.int32)),
            r"up_proj.g_idx names groups -1 to -1",
        ),
        ("gptq3", cut("qweight"), r"up_proj.qweight has shape \[5, 96\], which 3 bits do not"),
    ],
)
def test_the_error_of_a_damaged_checkpoint_names_file_and_tensor(
    kind: str, damage: Callable[[dict[str, Tensor]], None], message: str, tmp_path: Path
) -> None:
    stored, _ = write(kind, "llama", tmp_path)
    (path,) = stored.glob("*.safetensors")
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)
    with pytest.raises(ModelError, match=f"{path}: .*{message}"):
        read(units_of(stored), 0)


@pytest.mark.parametrize(
    ("kind", "name", "byte"),
    [
        ("fp8-block-whole", "weight", 0xFF),  # NaN of E4M3
        ("fp8-exponents", "weight_scale_inv", 0xFF),  # NaN of E8M0
        ("ct-nvfp4", "weight_scale", 0x7F),
        ("ct-int8", "weight_scale", 0xFF),  # NaN of float32
    ],
)
def test_values_that_are_not_finite_are_logged(
    kind: str, name: str, byte: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stored, _ = write(kind, "llama", tmp_path)
    (path,) = stored.glob("*.safetensors")
    tensors = load_file(path)
    tensors[f"{M}.{name}"].view(-1)[:1].view(torch.uint8).fill_(byte)
    save_file(tensors, path)
    read(units_of(stored), 0)
    assert "1 weights are NaN or infinite: the file is damaged" in caplog.text
    assert "mlp.up_proj.weight" in caplog.text


def test_a_group_size_that_does_not_divide_a_weight_is_refused(tmp_path: Path) -> None:
    stored, _ = write("ct-pack4", "llama", tmp_path)
    entry = compressed("pack-quantized", num_bits=4, strategy="group", group_size=40)
    set_quantization(stored, **entry)
    with pytest.raises(ModelError, match=r"weight_packed: group_size 40 .* does not divide"):
        units_of(stored)


def test_a_bias_of_other_values_than_zero_is_not_skipped(tmp_path: Path) -> None:
    stored, _ = write("gptq4", "llama", tmp_path)
    (path,) = stored.glob("*.safetensors")
    save_file(load_file(path) | {f"{M}.bias": torch.ones(96)}, path)
    with pytest.raises(ModelError, match=f"unexpected tensor {M}.bias"):
        units_of(stored)
