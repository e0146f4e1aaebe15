"""GGUF files of tiny checkpoints, written with the `gguf` package as llama.cpp's converter does."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType, TokenType
from numpy.typing import NDArray
from tokenizers import pre_tokenizers
from torch import Tensor

from engine.model.library import build_of_folder
from engine.weights import gguf_blocks
from engine.weights.family import read_config
from engine.weights.packing import dense_layout, expand
from engine.weights.units import CheckpointUnits

Array = NDArray[Any]
Arrays = dict[str, Array]
Kind = GGMLQuantizationType
F32 = GGMLQuantizationType.F32

ARCHITECTURES: Mapping[str, gguf.MODEL_ARCH] = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "mixtral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "gemma3n_text": gguf.MODEL_ARCH.GEMMA3N,
    "gemma4_text": gguf.MODEL_ARCH.GEMMA4,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "stablelm": gguf.MODEL_ARCH.STABLELM,
    "nemotron": gguf.MODEL_ARCH.NEMOTRON,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
}


ADDS_ONE = ("gemma", "gemma2", "gemma3_text", "nemotron")
# Tensors of lists of modules, which the converter writes as one.
_OF_LIST = re.compile(r"(.*\.(?:[qk]_layernorm\.norms|altup_\w+))\.\d+\.weight")
# Tensors without a suffix, which the converter adds.
_BARE = ("sinks", "layer_scalar", "correct_output_scale", "gate_up_proj", "down_proj")


def state_of(
    folder: Path, dtype: torch.dtype = torch.float32, *, packed: bool = False
) -> dict[str, Tensor]:
    """Return all dense tensors of a folder, by their names in the model.

    Args:
        packed: whether packed tensors are read packed and then expanded, or expanded when read.
    """
    model = build_of_folder(folder, read_config(folder), dtype, strict=True)
    units = CheckpointUnits(folder, model, dtype)
    units = units if packed else units.expanded()
    found: dict[str, Tensor] = {}
    for index, layout in enumerate(units.layouts):
        buffer = torch.empty(layout.nbytes, dtype=torch.uint8)
        units.read(index, buffer)
        dense = dense_layout(layout, dtype)
        views = dense.views(torch.empty(dense.nbytes, dtype=torch.uint8))
        tensors = expand(layout.views(buffer), views)
        found |= {f"{layout.name}.{name}": tensor for name, tensor in tensors.items()}
    for name, tensor in units.other_tensors().items():
        found[name] = tensor if isinstance(tensor, Tensor) else tensor.load()
    units.close()
    return found


def write_gguf(
    folder: Path,
    path: Path,
    kind: Callable[[str, Array], Kind] = lambda name, values: F32,
    change: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
    **writer_options: Any,
) -> Path:
    """Write the tiny checkpoint in `folder` as GGUF, with a token for each byte, and return it.

    Args:
        kind: returns the type of a tensor, given its name in the file.
        change: adds other keys to the file.
        writer_options: of `GGUFWriter`, for split files.
    """
    config = read_config(folder)
    architecture = ARCHITECTURES[config.model_type]
    name = gguf.MODEL_ARCH_NAMES[architecture]
    writer = gguf.GGUFWriter(path, name, **writer_options)
    writer.add_type("model")
    writer.add_file_type(LlamaFileType.ALL_F32)
    _add_config(writer, config)
    add_byte_tokenizer(writer, config.vocab_size)
    change(writer)
    for tensor, values in gguf_tensors(config, state_of(folder)).items():
        type_ = kind(tensor, values)
        packed = _quantized(values, type_)
        writer.add_tensor(tensor, packed, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _quantized(values: Array, kind: Kind) -> Array:
    """Return values as the bytes of a type; random ones where the package cannot quantize to it."""
    try:
        return gguf.quantize(values, kind)
    except NotImplementedError:
        size, nbytes = GGML_QUANT_SIZES[kind]
        return random_blocks(kind.name, values.size // size, nbytes).reshape(*values.shape[:-1], -1)


def random_blocks(kind: str, count: int, nbytes: int, scale: float = 1e-3) -> Array:
    """Return random blocks [count, nbytes] whose scales are finite and small."""
    blocks = np.random.default_rng(count).integers(0, 256, (count, nbytes), dtype=np.uint8)
    for at in gguf_blocks._SCALES_AT[kind]:
        blocks[:, at : at + 2] = np.frombuffer(np.float16(scale).tobytes(), dtype=np.uint8)
    return blocks


def add_byte_tokenizer(writer: gguf.GGUFWriter, size: int) -> None:
    """Add a tokenizer with one token for each of the first bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(f"<{i}>" for i in range(size))][:size]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.NORMAL] * size)
    writer.add_eos_token_id(1)


def gguf_tensors(config: Any, state: Mapping[str, Tensor]) -> dict[str, Array]:
    """Return the tensors of a model as llama.cpp's converter names and stores them."""
    architecture = ARCHITECTURES[config.model_type]
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    found: dict[str, Array] = _rope_tensors(config)
    lists: dict[str, list[Array]] = defaultdict(list)
    for name, tensor in state.items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if ".experts." in name and config.model_type != "gemma4_text":
            found |= _experts(config, name, tensor.numpy())
            continue
        listed = _OF_LIST.fullmatch(name)
        if listed is not None and "norms" in name:  # as _stack_qk_norm
            layer, which = name.split(".")[2], name.split(".")[4][0]
            lists[f"blk.{layer}.attn_{which}_norm.weight"].append(tensor.numpy())
            continue
        plain = f"{listed[1]}.weight" if listed else name
        plain = f"{plain}.weight" if plain.endswith(_BARE) else plain
        target = _scale(name) or names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert target is not None, name
        if listed:
            lists[target].append(tensor.numpy())
        else:
            found[target] = _changed(config, name, tensor).numpy()
    return found | {name: np.stack(rows) for name, rows in lists.items()}


def _scale(name: str) -> str:
    """Return the name in the file of a vector beside the router or the experts of Gemma 4."""
    for end, part in ((".router.scale", "ffn_gate_inp"), (".per_expert_scale", "ffn_down_exps")):
        if name.endswith(end):
            return f"blk.{name.split('.')[2]}.{part}.scale"
    return ""


def _changed(config: Any, name: str, tensor: Tensor) -> Tensor:
    """Return a tensor as the converter stores it."""
    kind = config.model_type
    if kind in ADDS_ONE and name.endswith("norm.weight"):
        return tensor + 1
    if kind in ("llama", "mistral", "mixtral", "granite") and (
        ".q_proj" in name or ".k_proj" in name
    ):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        halves = tensor.reshape(heads, 2, len(tensor) // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape).contiguous()
    return tensor


def _experts(config: Any, name: str, values: Array) -> dict[str, Array]:
    """Return the one or two tensors of fused experts."""
    layer, part = name.split(".")[2], name.split(".")[-1]
    suffix = "bias" if part.endswith("_bias") else "weight"
    turned = config.model_type == "gpt_oss"
    if turned and suffix == "weight":
        values = np.ascontiguousarray(values.swapaxes(1, 2))
    if part.startswith("down"):
        return {f"blk.{layer}.ffn_down_exps.{suffix}": values}
    half = values.shape[1] // 2
    gate, up = (values[:, ::2], values[:, 1::2]) if turned else (values[:, :half], values[:, half:])
    return {
        f"blk.{layer}.ffn_gate_exps.{suffix}": np.ascontiguousarray(gate),
        f"blk.{layer}.ffn_up_exps.{suffix}": np.ascontiguousarray(up),
    }


def _rope_tensors(config: Any) -> dict[str, Array]:
    """Return the factors of the frequencies of llama3's, Phi-3's and Gemma 4's rope."""
    rope = config.rope_parameters
    if config.model_type == "gemma4_text":
        size, part = _global_size(config), rope["full_attention"]["partial_rotary_factor"]
        turned = int(size * part / 2)
        factors = [1.0] * turned + [1e30] * (size // 2 - turned)
        return {"rope_freqs.weight": np.array(factors, dtype=np.float32)}
    if rope.get("rope_type") == "longrope":
        return {
            f"rope_factors_{length}.weight": np.array(rope[f"{length}_factor"], dtype=np.float32)
            for length in ("long", "short")
        }
    if rope.get("rope_type") != "llama3":
        return {}
    # As in generate_extra_tensors of convert_hf_to_gguf.py.
    factor, low, high = (rope[k] for k in ("factor", "low_freq_factor", "high_freq_factor"))
    original, factors = rope["original_max_position_embeddings"], []
    for exponent in range(0, config.head_dim, 2):
        length = 2 * np.pi * rope["rope_theta"] ** (exponent / config.head_dim)
        smooth = (original / length - low) / (high - low)
        mixed = 1 / ((1 - smooth) / factor + smooth)
        is_short, is_long = length < original / high, length > original / low
        factors.append(1.0 if is_short else factor if is_long else mixed)
    return {"rope_freqs.weight": np.array(factors, dtype=np.float32)}


def _widths(config: Any) -> int | list[int]:
    """Return the width of the MLP, or a list with the width of each layer."""
    width: int = config.intermediate_size
    if not getattr(config, "use_double_wide_mlp", False):
        return width
    layers, shared = config.num_hidden_layers, config.num_kv_shared_layers
    return [width] * (layers - shared) + [2 * width] * shared


def _key_heads(config: Any) -> int | list[int]:
    """Return the number of key heads, or a list with the number of each layer."""
    heads: int = config.to_dict()["num_key_value_heads"]
    if not getattr(config, "attention_k_eq_v", False):
        return heads
    layers = range(config.num_hidden_layers)
    return [config.per_layer_config[layer].num_key_value_heads for layer in layers]


def _global_size(config: Any) -> int:
    """Return the width of a head, in Gemma 4 of the layers without a window."""
    sizes = config.to_dict()
    if config.model_type == "gemma4_text":
        sizes = sizes["per_layer_config"][str(config.num_hidden_layers - 1)]
    size: int | None = sizes.get("head_dim")
    return size or 16


def _add_config(writer: gguf.GGUFWriter, config: Any) -> None:
    """Add the metadata of a configuration."""
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(_widths(config))
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(_key_heads(config))
    if hasattr(config, "rms_norm_eps"):
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if config.model_type not in ("gemma", "stablelm"):
        writer.add_rope_freq_base(rope["rope_theta"])
    if config.model_type != "stablelm":
        writer.add_key_length(_global_size(config))
    writer.add_vocab_size(config.vocab_size)
    if rope["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rope["factor"])
    if "original_max_position_embeddings" in rope and rope["rope_type"] != "llama3":
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    _add_expert_counts(writer, config)
    match config.model_type:
        case "qwen3_moe":
            writer.add_expert_feed_forward_length(config.moe_intermediate_size)
        case "gemma2":
            writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
            writer.add_final_logit_softcapping(config.final_logit_softcapping)
        case "gemma3_text":
            slides = [kind == "sliding_attention" for kind in config.layer_types]
            writer.add_sliding_window_pattern(slides)
        case "gemma3n_text":
            _add_inputs_of_layers(writer, config)
            writer.add_altup_active_idx(config.altup_active_idx)
            writer.add_altup_num_inputs(config.altup_num_inputs)
            shares = torch.tensor(config.activation_sparsity_pattern)
            writer.add_activation_sparsity_scale(torch.special.ndtri(shares).tolist())
        case "gemma4_text":
            _add_inputs_of_layers(writer, config)
            _add_gemma4(writer, config)
        case "stablelm":
            part = int(rope["partial_rotary_factor"] * config.hidden_size)
            writer.add_rope_dimension_count(part // config.num_attention_heads)
            writer.add_parallel_residual(config.use_parallel_residual)
            writer.add_layer_norm_eps(config.layer_norm_eps)
        case "nemotron":
            part = int(rope["partial_rotary_factor"] * config.hidden_size)
            writer.add_rope_dimension_count(part // config.num_attention_heads)
            writer.add_layer_norm_eps(config.norm_eps)
            writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
        case "granite":
            writer.add_embedding_scale(config.embedding_multiplier)
            writer.add_residual_scale(config.residual_multiplier)
            writer.add_logit_scale(config.logits_scaling)
            writer.add_attention_scale(config.attention_multiplier)


def _add_expert_counts(writer: gguf.GGUFWriter, config: Any) -> None:
    experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if experts:
        writer.add_expert_count(experts)
        used = "top_k_experts" if config.model_type == "gemma4_text" else "num_experts_per_tok"
        writer.add_expert_used_count(getattr(config, used))


def _add_inputs_of_layers(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)
    writer.add_sliding_window_pattern([k == "sliding_attention" for k in config.layer_types])
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])


def _add_gemma4(writer: gguf.GGUFWriter, config: Any) -> None:
    size, local = _global_size(config), config.to_dict()["head_dim"]
    writer.add_value_length(size)
    writer.add_key_length_swa(local)
    writer.add_value_length_swa(local)
    writer.add_rope_dimension_count(size)
    writer.add_rope_dimension_count_swa(local)
    if config.enable_moe_block:
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def write_keys(path: Path, keys: Mapping[str, Any], tensors: Mapping[str, Array] = {}) -> Path:
    """Write a file with these keys, as JSON has them, and these tensors."""
    writer = gguf.GGUFWriter(path, str(keys.get("general.architecture", "llama")))
    for key, value in keys.items():
        if key != "general.architecture":
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value), _items(value))
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def rewrite(
    path: Path,
    out: Path,
    keys: Mapping[str, Any],
    change: Callable[[Arrays], object] = lambda _: None,
) -> Path:
    """Write a copy of a GGUF file with other values of some keys, and with changed tensors."""
    reader = gguf.GGUFReader(path)
    name = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, name)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture" and key not in keys:
            writer.add_key_value(key, field.contents(), field.types[0], [*field.types, None][1])
    for key, value in keys.items():
        if value is not None:
            kind, items = gguf.GGUFValueType.get_type, value if isinstance(value, list) else [0]
            writer.add_key_value(key, value, kind(value), kind(items[0]))
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors}
    change(tensors)
    for key, values in tensors.items():
        writer.add_tensor(key, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def _items(value: Any) -> gguf.GGUFValueType | None:
    return gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None


def config_of(folder: Path) -> dict[str, Any]:
    """Return the values of a folder's config.json as transformers completes them."""
    found: dict[str, Any] = json.loads(json.dumps(read_config(folder).to_dict()))
    return found
