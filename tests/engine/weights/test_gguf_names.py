"""Errors of GGUF files whose metadata and tensors disagree have the names of the file's own keys.

No message names the config.json that is made in the cache.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from engine.cache_files import cache_root, folders
from engine.errors import ModelError
from engine.planning.blueprint import Blueprint
from engine.spec import ModelSpec, RopeSpec, TargetSpec
from engine.weights.config_file import read_config_values
from engine.weights.config_place import config_place
from engine.weights.family import AS_WRITTEN
from engine.weights.gguf_config import ARCHITECTURES
from engine.weights.gguf_keys import metadata_names
from engine.weights.hub import resolve
from tests.engine.checkpoints import STORED_FAMILIES, save_tiny
from tests.engine.gguf_files import Arrays, rewrite, write_gguf

# Values of config.json that are the same for every file of a family.
CONSTANT = {"quantization_config", "norm_topk_prob", "decoder_sparse_step", "mlp_only_layers"}


@pytest.fixture(name="files", scope="module")
def _files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a GGUF file of each of some families."""
    folder = tmp_path_factory.mktemp("files")
    families = ("llama", "mixtral", "phi3", "gemma3", "stablelm_parallel", "nemotron")
    layers = dict.fromkeys(families, 2) | {"gemma3n": 4, "gemma4": 4, "gemma4_experts": 2}
    return {
        family: write_gguf(
            save_tiny(family, folder / family, layers=count, tied=family.startswith("gemma")),
            folder / f"{family}.gguf",
        )
        for family, count in layers.items()
    }


def plan(path: Path, rope: RopeSpec = AS_WRITTEN, context: int | None = None) -> None:
    """Do with a file what a plan does."""
    folder = resolve(str(path), None, lambda *_: None).folder
    spec = ModelSpec("m", TargetSpec(str(path), rope=rope), context_length=context)
    assert Blueprint(spec, folder).outlines


def refused(path: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        plan(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and ".json" not in text and str(cache_root()) not in text


@pytest.mark.parametrize(
    ("family", "keys", "message"),
    [
        ("llama", {"block_count": 0}, r"llama.block_count: 0 is out of range"),
        ("llama", {"block_count": 1}, r"llama.block_count: 1 layers, .* 2 layers, blk.0 to blk.1"),
        ("llama", {"block_count": 1024}, r"llama.block_count: 1024 layers, but the file has"),
        ("llama", {"block_count": 1 << 30}, r"llama.block_count: 1073741824 is out of range"),
        (
            "llama",
            {"attention.head_count": 3},
            r"blk.0.attn_q.weight has shape \[64, 64\], but \[48, 64\] is expected by "
            r"llama.attention.head_count \(3\), llama.attention.key_length \(16\)\. Metadata and",
        ),
        (
            "llama",
            {"attention.head_count": 8, "attention.key_length": None},
            r"rope_freqs.weight: 4 positive",
        ),
        ("llama", {"attention.head_count": 5000}, r"llama.attention.head_count: 5000 is out of"),
        (
            "llama",
            {"attention.head_count_kv": 3},
            r"blk.0.attn_k.weight .* by llama.attention.head_count_kv \(3\), llama.att",
        ),
        ("llama", {"attention.head_count_kv": 0}, r"llama.attention.head_count_kv: 0 is out of"),
        ("llama", {"embedding_length": 63}, r"attn_q.weight .* by llama.embedding_length \(63\)\."),
        ("llama", {"embedding_length": 1 << 18}, r"attn_q.weight .* by llama.embedding_length \("),
        ("llama", {"feed_forward_length": 95}, r"ffn_gate.*\[95, 64\] .* llama.feed_forward_len"),
        ("llama", {"context_length": 0}, r"llama.context_length: 0 is out of range"),
        ("llama", {"attention.layer_norm_rms_epsilon": -1.0}, r"llama.*_epsilon: at least 0 is"),
        ("mixtral", {"expert_count": 3}, r"ffn_gate_inp.weight .* by llama.expert_count \(3\)\."),
        ("mixtral", {"expert_count": 0}, r"blk.0.ffn_down.weight is missing"),
        ("mixtral", {"expert_used_count": 9}, r"llama.expert_used_count: 9 of 4 experts"),
        ("mixtral", {"feed_forward_length": 7}, r"ffn_gate_exps.* by llama.feed_forward_length"),
        ("phi3", {"feed_forward_length": 48}, r"ffn_up.* \[96, 64\] is expected by phi3.feed_"),
        ("phi3", {"attention.head_count_kv": 4}, r"attn_qkv.* phi3.attention.head_count_kv \(4\)"),
        ("nemotron", {"attention.layer_norm_epsilon": -1.0}, r"nemotron.*_epsilon: at least 0 is"),
        ("nemotron", {"attention.layer_norm_epsilon": None}, r"nemotron.*_epsilon: a number is"),
        ("nemotron", {"rope.dimension_count": 17}, r"nemotron.rope.dimension_count: the width of"),
        ("stablelm_parallel", {"rope.dimension_count": 0}, r"stablelm.rope.dimension_count: the w"),
        (
            "stablelm_parallel",
            {"attention.head_count_kv": 1},
            r"blk.0.attn_k.weight .* stablelm.attention.head_count_kv \(1\)",
        ),
        ("gemma3", {"attention.sliding_window": 0}, r"gemma3.attention.sliding_window: at least 1"),
        ("gemma3", {"attention.key_length": None}, None),
        ("gemma3", {"attention.sliding_window_pattern": [True, True]}, None),
        ("gemma3", {"attention.sliding_window_pattern": 2}, None),
        ("gemma3", {"attention.sliding_window_pattern": [True]}, r".*pattern: a list of 2 values"),
        ("gemma3", {"attention.sliding_window_pattern": [1, 0]}, r".*pattern: a list of 2 values"),
        ("gemma3n", {"feed_forward_length": [96] * 4}, None),
        ("gemma3n", {"feed_forward_length": [96] * 3}, r"gemma3n.feed_forward_length: a list of 4"),
        ("gemma3n", {"feed_forward_length": [96, 0, 96, 96]}, r".*: a list of 4 integers above 0"),
        ("gemma3n", {"feed_forward_length": [96, 96, 95, 96]}, r"blk.2.ffn_gate.*length \(95\)"),
        ("gemma3n", {"attention.shared_kv_layers": 4}, r"shared_kv_layers: less than the 4 layers"),
        ("gemma3n", {"attention.shared_kv_layers": None}, r"no tensor for blk.2.attn_k"),
        (
            "gemma3n",
            {"altup.num_inputs": None},
            r"gemma3n.altup.num_inputs: an integer is expected",
        ),
        ("gemma3n", {"altup.num_inputs": 3}, r"altup_correct_coef.* gemma3n.altup.num_inputs \(3"),
        ("gemma3n", {"activation_sparsity_scale": [0.0] * 3}, r"_scale: a list of 4 numbers"),
        ("gemma3n", {"activation_sparsity_scale": [math.nan] * 4}, r"_scale: .* below infinity"),
        ("gemma3n", {"embedding_length_per_layer_input": 7}, r"by .*h_per_layer_input \(7\)"),
        (
            "gemma4",
            {"attention.key_length": 16, "attention.value_length": 16},
            r"rope_freqs.weight: 8 values are expected, 1 for the frequencies that are rotated",
        ),
        ("gemma4", {"attention.key_length_swa": 8}, r"value_length_swa: the value of .*swa \(8\)"),
        ("gemma4", {"attention.key_length_swa": None}, r"key_length_swa: an integer is expected"),
        ("gemma4", {"rope.dimension_count_swa": 8}, r"dimension_count_swa: the value of"),
        ("gemma4", {"rope.dimension_count": 8}, r"rope.dimension_count: the width of a head"),
        ("gemma4", {"rope.scaling.type": "yarn"}, r"rope.scaling.factor: a number is expected"),
        ("gemma4", {"rope.freq_base": -1.0}, r"rope.freq_base: a number above 0"),
        ("gemma4", {"feed_forward_length": 96}, r"blk.2.ffn_.* by gemma4.feed_forward_length \(96"),
        ("gemma4", {"feed_forward_length": [96, 96, 96, 192]}, r"one width, or twice as much in"),
        ("gemma4", {"attention.head_count_kv": [2, 1, 2, 1]}, r"kv: one number for all layers"),
        (
            "gemma4",
            {"attention.head_count_kv": [2, 1, 2, 2]},
            r"kv: one number for the layers with",
        ),
        ("gemma4", {"attention.shared_kv_layers": 9}, r"shared_kv_layers: less than the 4 layers"),
        ("gemma4", {"attention.sliding_window": 0}, r"attention.sliding_window: at least 1"),
        (
            "gemma4_experts",
            {"attention.head_count_kv": 2},
            r"attn_k.*head_count_kv \(2\), gemma4.a",
        ),
        ("gemma4_experts", {"expert_count": 3}, r"gemma4.expert_count \(3\)"),
        ("gemma4_experts", {"expert_used_count": 9}, r"gemma4.expert_used_count: 9 of 4 experts"),
    ],
)
def test_the_key_of_metadata_that_do_not_fit_the_tensors_is_named(
    family: str,
    keys: dict[str, Any],
    message: str | None,
    files: Mapping[str, Path],
    tmp_path: Path,
) -> None:
    architecture = gguf.GGUFReader(files[family]).fields["general.architecture"].contents()
    changed = {f"{architecture}.{key}": value for key, value in keys.items()}
    path = rewrite(files[family], tmp_path / "m.gguf", changed)
    if message is None:  # the width of a head follows from the hidden size
        plan(path)
    else:
        refused(path, message)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (
            130,
            r"llama.vocab_size is 130, but token_embd.weight has 128 rows and tokenizer.ggml.tok",
        ),
        (100, r"llama.vocab_size is 100, but .* tokenizer.ggml.tokens: 128 tokens\. Metadata and"),
        (-1, r"llama.vocab_size: an integer is expected, found -1"),
        ("many", r"llama.vocab_size: an integer is expected, found 'many'"),
        (None, None),
        (128, None),
    ],
)
def test_the_size_of_the_vocabulary_is_compared_with_the_rows_and_the_tokens(
    size: Any, message: str | None, files: Mapping[str, Path], tmp_path: Path
) -> None:
    path = rewrite(files["llama"], tmp_path / "m.gguf", {"llama.vocab_size": size})
    if message is None:
        plan(path)
    else:
        refused(path, message)


def test_rows_without_a_token_are_logged(
    files: Mapping[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fields = gguf.GGUFReader(files["llama"]).fields
    lists = ("tokenizer.ggml.tokens", "tokenizer.ggml.token_type")
    shorter = {key: fields[key].contents()[:120] for key in lists}
    plan(rewrite(files["llama"], tmp_path / "m.gguf", shorter))
    assert "llama.vocab_size is 128, but tokenizer.ggml.tokens: 120 tokens" in caplog.text


def turn(name: str) -> Callable[[Arrays], None]:
    return lambda tensors: tensors.update({name: np.ascontiguousarray(tensors[name].T)})


def cut(name: str) -> Callable[[Arrays], None]:
    return lambda tensors: tensors.update({name: tensors[name][:8]})


def drop(name: str) -> Callable[[Arrays], object]:
    return lambda tensors: tensors.pop(name)


def put(name: str, *shape: int) -> Callable[[Arrays], None]:
    return lambda tensors: tensors.update({name: np.zeros(shape, dtype=np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (turn("blk.1.attn_k.weight"), r"blk.1.attn_k.weight has shape \[64, 32\].* \[32, 64\]"),
        (turn("blk.0.ffn_down.weight"), r"blk.0.ffn_down.weight .* by llama.embedding_length \("),
        (turn("token_embd.weight"), r"has shape \[.*\], but \[64, 64\] is expected by "),
        (
            turn("output.weight"),
            r"output.weight .* by token_embd.weight \(128 rows\), llama.embedding_length \(64\)",
        ),
        (cut("output.weight"), r"output.weight .* by token_embd.weight \(128 rows\)\."),
        (
            lambda tensors: [cut(f"{name}.weight")(tensors) for name in ("token_embd", "output")],
            r"tokenizer.ggml.tokens: 128 tokens, but token_embd.weight has 8 rows",
        ),
        (cut("output_norm.weight"), r"output_norm.weight has shape \[8\], but \[64\]"),
        (drop("output_norm.weight"), r"output_norm.weight is missing"),
        (drop("blk.1.attn_k.weight"), r"blk.1.attn_k.weight is missing"),
        (put("blk.0.attn_norm.weight", 2, 32), r"attn_norm.weight has shape \[2, 32\].* \[64\]"),
        (put("blk.7.attn_k.weight", 32, 64), r"llama.block_count: 2 .* of 3 layers, blk.0 to bl"),
    ],
)
def test_a_tensor_that_does_not_fit_the_metadata_is_named(
    change: Callable[[Arrays], object], message: str, files: Mapping[str, Path], tmp_path: Path
) -> None:
    before = folders(cache_root())
    refused(rewrite(files["llama"], tmp_path / "m.gguf", {}, change), message)
    assert folders(cache_root()) == before  # the file leaves nothing in the cache


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            put("blk.1.attn_k_norm.weight", 4, 16),
            r"k_norm.weight has shape \[4, 16\], but \[2, 16\].* stablelm.attention.head_count_kv",
        ),
        (put("blk.1.attn_q_norm.weight", 16), r"q_norm.weight has shape \[16\], but \[4, 16\]"),
        (drop("blk.1.attn_q_norm.weight"), r"blk.1.attn_q_norm.weight is missing"),
        (put("blk.1.ffn_norm.weight", 64), r"unexpected tensor blk.1.ffn_norm.weight"),
        (drop("blk.1.attn_norm.bias"), r"no tensor for blk.1.attn_norm.bias"),
    ],
)
def test_tensors_that_some_models_of_a_family_lack_are_the_same_in_all_layers(
    change: Callable[[Arrays], object], message: str, files: Mapping[str, Path], tmp_path: Path
) -> None:
    refused(rewrite(files["stablelm_parallel"], tmp_path / "m.gguf", {}, change), message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("blk.1.ffn_odd.weight", 4), r"unexpected tensor blk.1.ffn_odd.weight: .* no place"),
        (put("blk.1.laurel_l.weight", 4, 64), r"unexpected tensor blk.1.laurel_l.weight: .* no pl"),
        (put("per_layer_token_embd.weight", 4, 4), r"unexpected tensor per_layer_token_embd.wei"),
        (put("blk.1.attn_q.bias", 64), r"unexpected tensor blk.1.attn_q.bias: .* download it"),
        (put("blk.0.attn_q.bias", 64), r"no tensor for blk.0.attn_k.bias \(and 6 more\) of Llama"),
    ],
)
def test_tensors_of_no_place_have_their_names_in_the_file(
    change: Callable[[Arrays], object], message: str, files: Mapping[str, Path], tmp_path: Path
) -> None:
    def ones(tensors: Arrays) -> None:
        change(tensors)
        tensors |= {name: own + 1 for name, own in tensors.items() if name.endswith("bias")}

    path = rewrite(files["llama"], tmp_path / "m.gguf", {}, ones)
    with pytest.raises(ModelError, match=message) as caught:
        plan(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and ".json" not in text and "model.layers" not in text


@pytest.mark.parametrize("family", ["gemma3n", "gemma4"])
def test_keys_of_a_layer_that_shares_those_of_another_are_skipped(
    family: str, files: Mapping[str, Path], tmp_path: Path
) -> None:
    """Published files hold them; their shape is checked all the same."""
    name = "blk.2.attn_k.weight"
    plan(rewrite(files[family], tmp_path / "m.gguf", {}, put(name, 32, 64)))
    path = rewrite(files[family], tmp_path / "n.gguf", {}, put(name, 16, 64))
    refused(path, r"blk.2.attn_k.weight has shape \[16, 64\], but \[32, 64\]")


def test_settings_are_compared_with_the_keys_of_the_file(files: Mapping[str, Path]) -> None:
    path = files["llama"]
    with pytest.raises(ModelError, match=rf"\(llama.context_length in {path}\)"):
        plan(path, context=1 << 20)
    with pytest.raises(ModelError, match=rf"In {path} llama.rope.scaling.type is"):
        plan(path, rope=RopeSpec(factor=2.0))


@pytest.mark.parametrize("family", STORED_FAMILIES)
def test_every_value_of_config_json_has_a_name_in_the_file(family: str, tmp_path: Path) -> None:
    path = write_gguf(save_tiny(family, tmp_path / "original", layers=1), tmp_path / "m.gguf")
    folder = resolve(str(path), None, lambda *_: None).folder
    place = config_place(folder)
    names = metadata_names(gguf.GGUFReader(path).fields["general.architecture"].contents())
    assert str(place) == str(path) and place.names == names
    values = read_config_values(folder)
    assert values.keys() - CONSTANT <= names.keys()
    for scaling in (values["rope_parameters"], *values["rope_parameters"].values()):
        keys = scaling.keys() if isinstance(scaling, dict) else set()
        assert keys - {"full_attention", "sliding_attention", "truncate"} <= names.keys() | {
            "low_freq_factor",
            "high_freq_factor",
        }


def test_architectures_have_one_place_for_each_part() -> None:
    for family in ARCHITECTURES.values():
        assert len(set(family.names.values())) == len(family.names)
