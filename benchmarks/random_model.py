"""A random llama checkpoint of any size, written shard by shard: making it takes little memory."""

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig

TOKENIZER = Path(__file__).parent.parent / "configs" / "demo" / "target"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
INDEX = "model.safetensors.index.json"
SCALE = 0.02  # standard deviation of the weights


@dataclass(frozen=True)
class Shape:
    """Sizes of a llama; the vocabulary is at least the demo tokenizer's 4,096."""

    layers: int = 30
    hidden: int = 2048
    intermediate: int = 5632
    heads: int = 32
    kv_heads: int = 8
    vocabulary: int = 32_000
    context: int = 2048

    def config(self) -> LlamaConfig:
        return LlamaConfig(
            architectures=["LlamaForCausalLM"],
            dtype="bfloat16",
            num_hidden_layers=self.layers,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.context,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=0,
            pad_token_id=0,
        )

    def shards(self) -> Iterator[dict[str, tuple[int, ...]]]:
        """Tensor name -> shape, one mapping a shard: embedding, each layer, norm and head."""
        yield {"model.embed_tokens.weight": (self.vocabulary, self.hidden)}
        for layer in range(self.layers):
            own = self._layer()
            yield {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
        yield {
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.vocabulary, self.hidden),
        }

    def _layer(self) -> dict[str, tuple[int, ...]]:
        keys = self.hidden // self.heads * self.kv_heads
        return {
            "input_layernorm": (self.hidden,),
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "post_attention_layernorm": (self.hidden,),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }


@dataclass(frozen=True)
class Checkpoint:
    """A written checkpoint and what it weighs."""

    folder: Path
    num_parameters: int
    nbytes: int  # of its weights


def make_checkpoint(folder: Path, shape: Shape) -> Checkpoint:
    """Write a bfloat16 checkpoint with the demo's tokenizer; one of this shape is left as it is.

    config.json is written last, so that an interrupted writing is begun again.
    """
    config = shape.config().to_json_string()
    path = folder / "config.json"
    if not path.exists() or path.read_text(encoding="utf-8") != config:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write(folder, shape)
        path.write_text(config, encoding="utf-8")
    metadata = json.loads((folder / INDEX).read_text(encoding="utf-8"))["metadata"]
    return Checkpoint(folder, metadata["total_parameters"], metadata["total_size"])


def forget_pages(folder: Path) -> None:
    """Drop the files below `folder` from the page cache: the next reads come from the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # pages not yet written cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


def _write(folder: Path, shape: Shape) -> None:
    generator = torch.Generator().manual_seed(0)
    placed: dict[str, str] = {}
    num_parameters = 0
    for number, shapes in enumerate(shape.shards()):
        name = f"model-{number:05}.safetensors"
        tensors = {tensor: _random(size, generator) for tensor, size in shapes.items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        placed |= dict.fromkeys(tensors, name)
        num_parameters += sum(tensor.numel() for tensor in tensors.values())
    index: dict[str, Any] = {
        "metadata": {"total_size": 2 * num_parameters, "total_parameters": num_parameters},
        "weight_map": placed,
    }
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    for name in TOKENIZER_FILES:
        shutil.copy(TOKENIZER / name, folder / name)


def _random(size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    weight = torch.empty(size, dtype=torch.bfloat16)
    if len(size) == 1:
        return weight.fill_(1.0)  # a norm
    return weight.normal_(0.0, SCALE, generator=generator)
