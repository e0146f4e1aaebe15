"""Convert a llama checkpoint to files of llama.cpp, offline: bfloat16, and q4_0 made from it.

Options of the job: `bfloat16` and `q4_0`, the files to write unless they exist. The files have no
vocabulary, because runners use token ids.
"""

import json
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, float32, uint8

from benchmarks.peers.job import Job, Outcome, run

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def convert(job: Job) -> Outcome:
    """Write the files of the job that are missing."""
    began = time.perf_counter()
    full, low = Path(job.options["bfloat16"]), Path(job.options["q4_0"])
    make_once(full, lambda part: write_bfloat16(Path(job.model), part))
    make_once(low, lambda part: _quantize(full, part))
    return Outcome(time.perf_counter() - began, ())


def make_once(path: Path, write: Callable[[Path], None]) -> None:
    """Make a file with `write` unless it exists; it gets its name when it is complete."""
    if not path.exists():
        part = path.with_suffix(".part")
        write(part)
        part.rename(path)


def write_bfloat16(folder: Path, path: Path) -> None:
    """Write the checkpoint's weights as GGUF: matrices in bfloat16, norms in float32."""
    gguf: Any = import_module("gguf")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("no_vocab")
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    for name, file in index["weight_map"].items():
        with safe_open(folder / file, framework="pt") as tensors:
            _add(writer, gguf, name, tensors.get_tensor(name), config)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: Any, gguf: Any, name: str, tensor: Tensor, config: dict[str, Any]) -> None:
    if tensor.dim() == 1:
        writer.add_tensor(gguf_name(name), tensor.to(float32).numpy())
        return
    if "q_proj" in name:
        tensor = pair_rows(tensor, config["num_attention_heads"])
    elif "k_proj" in name:
        tensor = pair_rows(tensor, config["num_key_value_heads"])
    raw = tensor.contiguous().view(uint8).numpy()  # [out, 2 in]
    writer.add_tensor(gguf_name(name), raw, raw_dtype=gguf.GGMLQuantizationType.BF16)


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a tensor."""
    stem = name.removesuffix(".weight")
    if stem.startswith("model.layers."):
        _, _, layer, own = stem.split(".", 3)
        return f"blk.{layer}.{NAMES[own]}.weight"
    return f"{NAMES[stem]}.weight"


def pair_rows(weight: Tensor, num_heads: int) -> Tensor:
    """Return rows [out, in] in llama.cpp's order: the rows of a rotary pair are neighbours."""
    rows, inputs = weight.shape
    halves = weight.view(num_heads, 2, rows // num_heads // 2, inputs)
    return halves.transpose(1, 2).reshape(rows, inputs)


def _quantize(source: Path, path: Path) -> None:
    llama_cpp: Any = import_module("llama_cpp")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    failed = llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params)
    if failed:
        raise RuntimeError(f"{source}: llama.cpp could not quantize it (status {failed})")


if __name__ == "__main__":
    run(convert)
