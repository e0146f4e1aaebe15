"""A model that is planned from its config.json alone has the same units as its checkpoint."""

import json
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

import engine.planning.blueprint
from engine.errors import ModelError
from engine.planning.blueprint import Blueprint
from engine.spec import ModelSpec, TargetSpec
from engine.weights.formats.scaled_plans import matches
from engine.weights.hub import locate, resolve
from engine.weights.outline import UnreadUnits
from engine.weights.shards import has_weights
from tests.engine.checkpoints import FAMILIES, save_tiny
from tests.engine.gguf_files import Array, Kind, write_gguf
from tests.engine.weights.formats.quantized_files import FORMATS, write
from tests.engine.weights.formats.test_linear import mxfp4_checkpoint, quantize_checkpoint
from tests.variations import variations


def both(folder: Path, alone: Path, **target: Any) -> tuple[Any, Any]:
    """Return the outline of a checkpoint and the one of a copy of its config.json."""
    alone.mkdir()
    shutil.copy(folder / "config.json", alone)
    found = []
    for place in (folder, alone):
        blueprint = Blueprint(ModelSpec("m", TargetSpec(str(place), **target)), place)
        located = locate(str(place), None)
        assert has_weights(located) == (place == folder)
        found.append(blueprint.outlines[True])
    return found[0], found[1]


@pytest.mark.parametrize("quantize", [None, "nf4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_familys_units_are_known_from_its_configuration(
    family: str, quantize: str | None, tmp_path: Path
) -> None:
    save_tiny(family, tmp_path / "whole", dtype=torch.bfloat16)
    read, planned = both(tmp_path / "whole", tmp_path / "alone", quantize=quantize)
    assert planned.layouts == read.layouts
    assert planned.layers == read.layers
    assert planned.other_tensors == read.other_tensors


@pytest.mark.parametrize("tied", [False, True])
def test_a_tied_head_is_a_unit_of_its_own(tied: bool, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "whole", tied=tied)
    read, planned = both(tmp_path / "whole", tmp_path / "alone")
    assert planned.layouts == read.layouts
    assert len(planned.layouts) == len(planned.layers) + 1


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_slices_of_experts_are_known_from_the_configuration(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine.planning.blueprint, "SLICE_BYTES", 1)
    save_tiny(family, tmp_path / "whole")
    read, planned = both(tmp_path / "whole", tmp_path / "alone")
    assert len(planned.layouts) > len(planned.layers) + 1
    assert planned.layouts == read.layouts and planned.layers == read.layers


def test_nf4_weights_are_known_from_the_quantization_config(tmp_path: Path) -> None:
    save_tiny("qwen2", tmp_path / "whole", layers=2, max_shard_size="1GB")
    quantize_checkpoint(tmp_path / "whole", nested=True)
    read, planned = both(tmp_path / "whole", tmp_path / "alone")
    assert planned.layouts == read.layouts
    assert any(field.name.endswith(".nf4") for field in planned.layouts[0].fields)


def test_mxfp4_experts_are_planned_packed(tmp_path: Path) -> None:
    mxfp4_checkpoint(tmp_path / "whole")
    read, planned = both(tmp_path / "whole", tmp_path / "alone")
    assert planned.layouts == read.layouts
    assert any(field.name.endswith(".mxfp4_blocks") for field in planned.layouts[0].fields)


def gguf_types(name: str, values: Array) -> Kind:
    """Return the type of a tensor: one of its own for the parts of a layer that may be fused."""
    if values.ndim == 1 or values.shape[-1] % 32:
        return Kind.F32
    kinds = {"ffn_up_exps": Kind.Q4_1, "ffn_gate_exps": Kind.Q4_1, "ffn_down": Kind.Q5_0}
    return next((kind for part, kind in kinds.items() if part in name), Kind.Q8_0)


def differing_types(name: str, values: Array) -> Kind:
    return Kind.Q5_1 if "ffn_up_exps" in name else gguf_types(name, values)


@pytest.mark.parametrize(
    ("family", "types", "tied"),
    variations(
        [(family, gguf_types, family.startswith("gemma")) for family in FAMILIES]
        + [("llama", gguf_types, True), ("mixtral", differing_types, False)],
        quick=[
            ("gemma3", gguf_types, True),
            ("llama", gguf_types, True),
            ("gpt_oss", gguf_types, False),
            ("mixtral", differing_types, False),
        ],
    ),
)
def test_blocks_of_gguf_are_known_from_the_configuration(
    family: str, types: Any, tied: bool, tmp_path: Path
) -> None:
    original = save_tiny(family, tmp_path / "original", layers=2, tied=tied)
    made = resolve(str(write_gguf(original, tmp_path / "m.gguf", types)), None, lambda *_: None)
    read, planned = both(made.folder, tmp_path / "alone")
    assert planned.layouts == read.layouts
    assert planned.layouts[-1].fields[0].name == "weight.q8_0"
    fused = {field.name for field in read.layouts[0].fields if ".gate_up_proj" in field.name}
    if family in ("mixtral", "qwen3_moe", "gpt_oss"):
        suffix = {"gpt_oss": ".q4_1_turned"}.get(family, ".q4_1")
        packed = "mlp.experts.gate_up_proj" + (suffix if types is gguf_types else "")
        assert packed in fused


@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": ["llama"]},
        {"architecture": "other"},
        {"tensors": None},
        {"tensors": [1]},
    ],
)
def test_a_configuration_of_gguf_without_its_types_is_refused(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path / "whole", layers=1)
    (tmp_path / "alone").mkdir()
    config = json.loads((tmp_path / "whole" / "config.json").read_text())
    stored = {"quant_method": "gguf", "architecture": "llama", "tensors": {}} | changes
    text = json.dumps(config | {"quantization_config": stored})
    (tmp_path / "alone" / "config.json").write_text(text)
    spec = ModelSpec("m", TargetSpec(str(tmp_path / "alone")))
    with pytest.raises(ModelError, match="has no architecture and tensors"):
        assert Blueprint(spec, tmp_path / "alone").outlines


@pytest.mark.parametrize("types", [{"blk.0.attn_q.weight": ["Q8_0"]}, {"a": 1}, {"": "Q8_0"}])
def test_types_that_no_file_has_are_not_packed(types: dict[str, Any], tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=1)
    for weights in tmp_path.glob("*.safetensors*"):
        weights.unlink()
    config = json.loads((tmp_path / "config.json").read_text())
    stored = {"quant_method": "gguf", "architecture": "llama", "tensors": types}
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": stored}))
    blueprint = Blueprint(ModelSpec("m", TargetSpec(str(tmp_path))), tmp_path)
    assert blueprint.outlines[True].layouts == blueprint.outlines[False].layouts


# An old version stores other zeros, and the file of mixed bits chooses them by shapes of llama.
UNTOLD = (
    ("ct-pack4-old-zeros-and-order", "llama"),
    ("ct-pack4-old-zeros-and-order", "qwen3_moe"),
    ("ct-mixed", "qwen3_moe"),
)


@pytest.mark.parametrize(
    ("kind", "family"), [c for c in product(FORMATS, ("llama", "qwen3_moe")) if c not in UNTOLD]
)
def test_codes_with_scales_are_known_from_the_configuration(
    kind: str, family: str, tmp_path: Path
) -> None:
    stored, _ = write(kind, family, tmp_path)
    read, planned = both(stored, tmp_path / "alone")
    assert planned.layouts == read.layouts
    assert planned.other_tensors == read.other_tensors


OF_LAYER_0 = "model.layers.0."
QKV = ("q_proj", "k_proj", "v_proj")


def in_layer_0(*endings: str) -> Any:
    return lambda name: name.startswith(OF_LAYER_0) and name.endswith(endings)


@pytest.mark.parametrize(
    ("kind", "entry", "is_plain"),
    [
        ("fp8-block-whole", {"modules_to_not_convert": ["model.layers.0"]}, in_layer_0("")),
        (
            "fp8-channel",
            {"modules_to_not_convert": ["layers.0.self_attn"]},
            lambda n: "layers.0.self_attn." in n,
        ),
        ("fp8-tensor", {"ignored_layers": ["q_proj", "k_proj", "v_proj"]}, lambda n: n[-6:] in QKV),
        ("awq", {"modules_to_not_convert": ["mlp.down_proj"]}, lambda n: n.endswith("down_proj")),
        ("ct-pack4", {"ignore": ["lm_head", "re:.*layers\\.0\\..*_proj"]}, in_layer_0("")),
        (
            "ct-fp8",
            {"ignore": ["lm_head", "re:.*self_attn.(q|k|v)_proj$"]},
            lambda n: n[-6:] in QKV,
        ),
        ("ct-int8", {"ignore": ["lm_head", "model.layers.0.mlp.up_proj"]}, in_layer_0("up_proj")),
        (
            "gptq4",
            {"bits": 4.0, "dynamic": {"-:.*\\.0\\..*": {}, "+:.*": {"bits": 4}}},
            in_layer_0(""),
        ),
    ],
)
def test_modules_that_are_not_quantized_are_known_from_the_configuration(
    kind: str, entry: dict[str, Any], is_plain: Any, tmp_path: Path
) -> None:
    stored, _ = write(kind, "llama", tmp_path, is_plain=is_plain, **entry)
    read, planned = both(stored, tmp_path / "alone")
    assert planned.layouts == read.layouts
    names = {field.name for unit in read.layouts for field in unit.fields}
    assert any(name.endswith(".scales") for name in names)


@pytest.mark.parametrize(
    ("pattern", "is_tried"),
    [
        (".*lm_head", True),
        ("model[.]layers[.]0[.].*", True),
        ("(?:lm)_(?:head|tail)$", True),
        ("(a+)+$", False),
        ("(?:a|aa)+$", False),
        ("(a|aa)*$", False),
        (".*.*.*.*x", False),
        ("a{1,999}", False),
        ("(", False),
        ("x" * 300, False),
    ],
)
def test_patterns_that_could_take_long_are_not_tried(pattern: str, is_tried: bool) -> None:
    name = {"model[.]layers[.]0[.].*": "model.layers.0.mlp"}.get(pattern, "lm_head")
    assert matches(pattern, name) == is_tried
    assert not matches(pattern, "a" * 60 + "!")


def test_units_without_a_checkpoint_cannot_be_read(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "whole")
    _, planned = both(tmp_path / "whole", tmp_path / "alone")
    with pytest.raises(ModelError, match=r"only the model's config\.json"):
        UnreadUnits(planned).read(0, torch.empty(0, dtype=torch.uint8))


def test_a_checkpoint_with_a_missing_shard_counts_as_not_there(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path)
    assert has_weights(tmp_path)
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    shards[-1].unlink()
    assert not has_weights(tmp_path)
    assert locate(str(tmp_path), None) == tmp_path.resolve()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": []}}',
        '{"weight_map": {"a": "../a.safetensors"}}',
        '{"weight_map": {"a": ""}}',
    ],
)
def test_a_corrupt_index_is_refused_by_name(text: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ModelError, match=r"index\.json: corrupt.*Download it again"):
        has_weights(tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [("/no/such/folder", "no such folder"), ("some/model", "not cached"), (".", "config.json")],
)
def test_a_model_without_a_configuration_is_refused(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=message):
        locate(source, None)
