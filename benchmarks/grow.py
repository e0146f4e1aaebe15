"""Grow a small llama into a larger llama or qwen2 model that computes the same function.

    python -m benchmarks.grow configs/demo/target /var/tmp/grown --layers 33 --hidden 2048

The grown model writes the text of the trained model, with the same acceptance of drafts, at the
cost of a large model. Nearly every added weight is noise, so that files and matrix products cost
the same as those of any model of that size. D is the hidden size of the source, D' the new one:

- Width: the residual stream holds `copies` equal copies of the source's stream, followed by zeros,
  so its mean square is the source's times `copies * D / D'`, which the weight and the epsilon of
  each norm correct. Norm weights are zero except for the first copy. Weights that read the other
  dimensions therefore read zeros, and are noise.
- Added heads and MLP units: their `v` and `up` rows read only dimensions whose normed value is
  zero, so their outputs are exactly zero, and the columns of `o` and `down` that read them are
  noise.
- Heads that are wider by a whole factor: the source's rotary pairs keep their frequencies at every
  factor-th pair; the queries are scaled to correct the different attention scale.
- Added layers: the weights of both norms are zero, so attention and MLP return exactly zero.
- Added tokens: the last dimension of the residual stream holds a small constant, for which epsilon
  is corrected; the head reads it so that the logits of added tokens are far below all others.

The inputs that come from the source are the first columns, so that no group of a 4-bit copy mixes
them with noise (if the source's sizes are multiples of the group size).
"""

import argparse
import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig

from benchmarks.random_model import SCALE, Checkpoint, Family, Shape, write_checkpoint

VERSION = 1  # raised when the same arguments begin to give other weights
FAR_BELOW = 2.0**24  # final norm's weight for the constant: added tokens' logits are about -1e4

Dtype = Literal["bfloat16", "float32"]

LARGE = Shape(layers=33, vocabulary=4096)  # 1.5 B parameters
SMALL = Shape(layers=12, hidden=768, intermediate=2048, heads=12, kv_heads=4, vocabulary=4096)


class CannotGrow(ValueError):
    """The source does not fit into the shape; the message names the size that is wrong."""


def grow(
    source: Path, folder: Path, shape: Shape, *, dtype: Dtype = "bfloat16", seed: int = 0
) -> Checkpoint:
    """Write a checkpoint of `shape` into `folder` that has the logits of the llama in `source`.

    The logits are equal within rounding; those of added tokens are far below all others. A finished
    checkpoint of the same source and arguments is not written again. Raises `CannotGrow`.
    """
    growth = _Growth(source, AutoConfig.from_pretrained(source), shape, dtype, seed)
    growth.check()
    weights = hashlib.sha256((source / "model.safetensors").read_bytes()).hexdigest()
    return write_checkpoint(
        folder,
        growth.config().to_json_string(),
        growth.shards(),
        tokenizer=source,
        recipe=f"grown {VERSION} {weights} {shape} {dtype} {seed}",
    )


@dataclass(frozen=True)
class _Growth:
    """The writer of one grown checkpoint: it places the source's weights among the new ones."""

    source: Path
    old: PretrainedConfig
    new: Shape
    dtype: Dtype
    seed: int

    def check(self) -> None:
        """Raise `CannotGrow` if the source does not fit into the shape."""
        old, new = self.old, self.new
        if old.model_type != "llama" or getattr(old, "attention_bias", False):
            raise CannotGrow(f"{self.source}: grows out of a llama without biases only")
        sizes = {
            "layers": (old.num_hidden_layers, new.layers),
            "hidden": (old.hidden_size + self.has_more_tokens, new.hidden),
            "intermediate": (old.intermediate_size, new.intermediate),
            "kv_heads": (old.num_key_value_heads * self.kv_copies, new.kv_heads),
            "vocabulary": (old.vocab_size, new.vocabulary),
            "context": (old.max_position_embeddings, new.context),
        }
        for name, (fewest, given) in sizes.items():
            if given < fewest:
                raise CannotGrow(f"{name}: {given} is too small, {self.source} needs {fewest}")
        if new.heads % new.kv_heads:
            raise CannotGrow(f"heads: {new.heads} is no multiple of kv_heads, {new.kv_heads}")
        if new.head_width % old.head_dim:
            raise CannotGrow(f"head_dim: {new.head_width} is no multiple of {old.head_dim}")

    @property
    def has_more_tokens(self) -> bool:
        return self.new.vocabulary > int(self.old.vocab_size)

    @property
    def copies(self) -> int:
        """Return the copies of the residual stream that fit; added tokens need a dimension."""
        hidden: int = self.old.hidden_size
        return (self.new.hidden - self.has_more_tokens) // hidden

    @property
    def kv_copies(self) -> int:
        """Return the copies of each key-value head; several if fewer query heads share one now."""
        shared: int = self.old.num_attention_heads // self.old.num_key_value_heads
        return -(-shared // (self.new.heads // self.new.kv_heads))

    @property
    def constant(self) -> float:
        """Return the last dimension, a power of two whose square epsilon can correct."""
        if not self.has_more_tokens:
            return 0.0
        most = self.old.rms_norm_eps * self.copies * self.old.hidden_size
        return 2.0 ** math.floor(math.log2(most) / 2)

    def config(self) -> PretrainedConfig:
        """Return the configuration of the grown model."""
        config, old = self.new.config(), self.old
        square = self.copies * old.hidden_size * old.rms_norm_eps - self.constant**2
        config.update(
            {
                "dtype": self.dtype,
                "rms_norm_eps": square / self.new.hidden,
                "rope_parameters": old.rope_parameters,
                "hidden_act": old.hidden_act,
                "eos_token_id": old.eos_token_id,
                "bos_token_id": old.bos_token_id,
                "pad_token_id": old.pad_token_id,
            }
        )
        return config

    def shards(self) -> Iterator[dict[str, Tensor]]:
        """Yield the tensors of the embedding, of each layer, and of norm and head."""
        with safe_open(self.source / "model.safetensors", framework="pt") as file:
            read = _Reader(file)
            yield self._cast({"model.embed_tokens.weight": self._embedding(read)})
            count, wanted = self.old.num_hidden_layers, self.new.layers
            places = {(2 * i + 1) * wanted // (2 * count): i for i in range(count)}  # spread
            for layer in range(wanted):
                tensors = self._layer(read, places.get(layer))
                yield self._cast({f"model.layers.{layer}.{n}": t for n, t in tensors.items()})
            yield self._cast(self._head(read))

    def _cast(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: t.to(getattr(torch, self.dtype)).contiguous() for n, t in tensors.items()}

    def _embedding(self, read: "_Reader") -> Tensor:
        """Return the embedding [V', D']: the source's rows in each copy, then the constant."""
        old = read("model.embed_tokens.weight")
        weight = self._noise(self.new.vocabulary, self.new.hidden)
        weight[: len(old)] = self._residual(old.T).T
        if self.has_more_tokens:
            weight[:, -1] = self.constant
        return weight

    def _residual(self, rows: Tensor) -> Tensor:
        """Return rows [D, x] that write to the residual stream for all copies, [D', x]."""
        written = rows.new_zeros(self.new.hidden, rows.shape[1])
        written[: self.copies * len(rows)] = rows.repeat(self.copies, 1)
        return written

    def _head(self, read: "_Reader") -> dict[str, Tensor]:
        tied = self.old.tie_word_embeddings
        old = read("model.embed_tokens.weight" if tied else "lm_head.weight")
        norm = self._norm(read("model.norm.weight"))
        weight = self._noise(self.new.vocabulary, self.new.hidden)
        weight[: len(old), : old.shape[1]] = old
        if self.has_more_tokens:
            norm[-1] = FAR_BELOW
            weight[len(old) :, : old.shape[1]] = 0
            weight[len(old) :, -1] = -1
            # The groups of a 4-bit copy that hold the constant are zero, so nothing is rounded.
            weight[: len(old), self.copies * old.shape[1] :] = 0
        return {"model.norm.weight": norm, "lm_head.weight": weight}

    def _norm(self, old: Tensor) -> Tensor:
        norm = old.new_zeros(self.new.hidden)
        norm[: len(old)] = old * math.sqrt(self.copies * len(old) / self.new.hidden)
        return norm

    def _layer(self, read: "_Reader", index: int | None) -> dict[str, Tensor]:
        """Return the tensors of one layer; `index` None makes a layer that returns zero."""
        shapes = self.new.layer_tensors()
        tensors = {n: self._noise(*s) for n, s in shapes.items() if len(s) == 2}
        tensors |= {n: torch.zeros(s) for n, s in shapes.items() if len(s) == 1}
        if index is not None:
            weights = [name for name in shapes if name.endswith("weight")]
            old = {name: read(f"model.layers.{index}.{name}") for name in weights}
            for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
                tensors[name] = self._norm(old[name])
            self._place_attention(tensors, old)
            self._place_mlp(tensors, old)
        return tensors

    def _place_attention(self, new: dict[str, Tensor], old: dict[str, Tensor]) -> None:
        names = ("q", "k", "v", "o")
        q, k, v, o = (new[f"self_attn.{name}_proj.weight"] for name in names)
        old_q, old_k, old_v, old_o = (old[f"self_attn.{name}_proj.weight"] for name in names)
        hidden, places = self.old.hidden_size, self._places
        q[places.query_heads, :hidden] = 0  # a wider head has pairs that are not the source's
        q[places.queries, :hidden] = old_q * math.sqrt(self.new.head_width / self.old.head_dim)
        k[places.keys, :hidden] = old_k[places.kv_sources]
        v[:, :hidden] = 0
        v[places.values, :hidden] = old_v[places.kv_sources]
        o[:, places.live] = 0  # also for added query heads that read the source's values
        o[:, places.outputs] = self._residual(old_o)

    def _place_mlp(self, new: dict[str, Tensor], old: dict[str, Tensor]) -> None:
        hidden, units = self.old.hidden_size, self.old.intermediate_size
        new["mlp.gate_proj.weight"][:units, :hidden] = old["mlp.gate_proj.weight"]
        new["mlp.up_proj.weight"][:, :hidden] = 0
        new["mlp.up_proj.weight"][:units, :hidden] = old["mlp.up_proj.weight"]
        new["mlp.down_proj.weight"][:, :units] = self._residual(old["mlp.down_proj.weight"])

    @cached_property
    def _places(self) -> "_Places":
        return _Places.of(self.old, self.new, self.kv_copies)

    @cached_property
    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _noise(self, *size: int) -> Tensor:
        return torch.empty(size).normal_(0.0, SCALE, generator=self._generator)


@dataclass(frozen=True)
class _Places:
    """The rows of the larger projections that hold the source's heads, as index tensors."""

    queries: Tensor  # new row of each old query row
    query_heads: Tensor  # all rows of the new query heads that hold the source's
    keys: Tensor  # rows of the new k that hold the source's
    values: Tensor  # rows of the new v; they are consecutive in a wider head
    kv_sources: Tensor  # old rows that are stored at `keys` and `values`
    outputs: Tensor  # new input of o for each old one
    live: Tensor  # inputs of o that are not zero: every head that reads the source's values

    @classmethod
    def of(cls, old: Any, new: Shape, kv_copies: int) -> "_Places":
        width, old_width = new.head_width, old.head_dim
        shared = new.heads // new.kv_heads
        old_shared = old.num_attention_heads // old.num_key_value_heads
        heads = torch.tensor(
            [
                (h // old_shared * kv_copies + h % old_shared // shared) * shared
                + h % old_shared % shared
                for h in range(old.num_attention_heads)
            ]
        )
        kv_heads = torch.arange(old.num_key_value_heads * kv_copies)
        plain = torch.arange(old_width)
        half, factor = old_width // 2, width // old_width
        rotary = plain % half * factor + plain // half * (width // 2)
        return cls(
            queries=_rows(heads, width, rotary),
            query_heads=_rows(heads, width, torch.arange(width)),
            keys=_rows(kv_heads, width, rotary),
            values=_rows(kv_heads, width, plain),
            kv_sources=_rows(kv_heads // kv_copies, old_width, plain),
            outputs=_rows(heads, width, plain),
            live=_rows(torch.arange(len(kv_heads) * shared), width, plain),
        )


def _rows(heads: Tensor, width: int, within: Tensor) -> Tensor:
    """Return the rows `within` each of the heads, which have `width` rows each."""
    return (heads[:, None] * width + within).flatten()


@dataclass(frozen=True)
class _Reader:
    """A reader of the source's tensors, which it returns in float32."""

    file: Any

    def __call__(self, name: str) -> Tensor:
        tensor: Tensor = self.file.get_tensor(name)
        return tensor.float()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.grow", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("source", type=Path, help="folder of a small llama")
    parser.add_argument("folder", type=Path, help="where the grown checkpoint goes")
    sizes = ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocabulary", "context")
    for name in sizes:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(LARGE, name))
    parser.add_argument("--head-dim", type=int, help="default: hidden / heads")
    parser.add_argument("--family", choices=get_args(Family), default=LARGE.family)
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    args = parser.parse_args()
    shape = Shape(**{n: getattr(args, n) for n in (*sizes, "head_dim", "family")})
    made = grow(args.source, args.folder, shape, dtype=args.dtype, seed=args.seed)
    billions, gigabytes = made.num_parameters / 1e9, made.nbytes / 1e9
    print(f"{made.folder}: {billions:.2f} B parameters, {gigabytes:.2f} GB")


if __name__ == "__main__":
    main()
