"""Write checkpoints of any size, shard by shard, so that this takes little memory.

`make_checkpoint` writes random weights with the demo's tokenizer; `benchmarks.grow` writes models
that compute what the demo model computes.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, PretrainedConfig, Qwen2Config

TOKENIZER = Path(__file__).parent.parent / "configs" / "demo" / "target"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
INDEX = "model.safetensors.index.json"
RECIPE = "recipe.txt"  # the arguments that a checkpoint was made with, written last
SCALE = 0.02  # standard deviation of the weights

Family = Literal["llama", "qwen2"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a llama or qwen2 model (whose attention has biases), with an untied head.

    The vocabulary is at least the demo tokenizer's 4,096.
    """

    layers: int = 30
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 32_000
    context: int = 2048
    head_dim: int | None = None  # None: hidden / heads
    family: Family = "llama"

    @property
    def head_width(self) -> int:
        return self.head_dim or self.hidden // self.heads

    def config(self) -> PretrainedConfig:
        """Return the configuration of a model of this shape."""
        kind: type[Any] = {"llama": LlamaConfig, "qwen2": Qwen2Config}[self.family]
        config: PretrainedConfig = kind(
            architectures=[kind.__name__.replace("Config", "ForCausalLM")],
            dtype="bfloat16",
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_width,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.context,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )
        return config

    def shards(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Yield tensor name -> shape for each shard: embedding, each layer, norm with head."""
        yield {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            own = self.layer_tensors()
            yield {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
        yield {
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.vocabulary, self.hidden),
        }

    def layer_tensors(self) -> dict[str, tuple[int, ...]]:
        """Return the name and shape of each tensor of a layer."""
        queries, keys = self.heads * self.head_width, self.kv_heads * self.head_width
        tensors: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (queries, self.hidden),
            "self_attn.k_proj.weight": (keys, self.hidden),
            "self_attn.v_proj.weight": (keys, self.hidden),
            "self_attn.o_proj.weight": (self.hidden, queries),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.intermediate, self.hidden),
            "mlp.up_proj.weight": (self.intermediate, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.intermediate),
        }
        if self.family == "qwen2":
            for name in ("q", "k", "v"):
                rows = tensors[f"self_attn.{name}_proj.weight"][0]
                tensors[f"self_attn.{name}_proj.bias"] = (rows,)
        return tensors


@dataclass(frozen=True)
class Checkpoint:
    """A written checkpoint with its size."""

    folder: Path
    num_parameters: int
    nbytes: int  # of its weights


def make_checkpoint(folder: Path, shape: Shape) -> Checkpoint:
    """Write a random bfloat16 checkpoint with the demo's tokenizer, if it is not there."""
    generator = torch.Generator().manual_seed(0)
    shards = (
        {n: random_weight(s, generator) for n, s in shapes.items()} for shapes in shape.shards()
    )
    config = shape.config().to_json_string()
    return write_checkpoint(folder, config, shards, tokenizer=TOKENIZER, recipe=f"random {shape}")


def write_checkpoint(
    folder: Path, config: str, shards: Iterable[dict[str, Tensor]], *, tokenizer: Path, recipe: str
) -> Checkpoint:
    """Write a checkpoint, one file for each shard, unless a finished one has the same recipe.

    The recipe is written last, so that a checkpoint that was interrupted is written again.

    Args:
        config: the text of `config.json`.
        tokenizer: the folder whose tokenizer files are copied.
        recipe: the arguments of the weights; another recipe replaces the checkpoint.
    """
    path = folder / RECIPE
    if not path.exists() or path.read_text(encoding="utf-8") != recipe:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write(folder, shards)
        for name in TOKENIZER_FILES:
            shutil.copy(tokenizer / name, folder / name)
        (folder / "config.json").write_text(config, encoding="utf-8")
        path.write_text(recipe, encoding="utf-8")
    metadata = json.loads((folder / INDEX).read_text(encoding="utf-8"))["metadata"]
    return Checkpoint(folder, metadata["total_parameters"], metadata["total_size"])


def forget_pages(folder: Path) -> None:
    """Drop the files below `folder` from the page cache, so that the next reads use the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # dirty pages cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _write(folder: Path, shards: Iterable[dict[str, Tensor]]) -> None:
    placed: dict[str, str] = {}
    num_parameters = num_bytes = 0
    for number, tensors in enumerate(shards):
        name = f"model-{number:05}.safetensors"
        save_file(tensors, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(tensors, name)
        num_parameters += sum(tensor.numel() for tensor in tensors.values())
        num_bytes += sum(tensor.nbytes for tensor in tensors.values())
    index: dict[str, Any] = {
        "metadata": {"total_size": num_bytes, "total_parameters": num_parameters},
        "weight_map": placed,
    }
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")


def random_weight(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    weight = torch.empty(size, dtype=torch.bfloat16)
    if len(size) == 1:
        return weight.fill_(1.0)  # a norm or a bias
    return weight.normal_(0.0, SCALE, generator=generator)
