"""GGUF files: the tensors of llama.cpp's converter, under its names and in its order of rows.

Tensors in blocks are expanded in float32 when they are read, then rounded once to the model's
type. What the converter changed is undone: it permutes the rows of q and k of llama, adds 1 to the
norms of Gemma, and separates the gate and up parts of fused experts.

Source: convert_hf_to_gguf.py and gguf-py/gguf/tensor_mapping.py of llama.cpp.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.weights.gguf_blocks import expand_blocks, expand_into
from engine.weights.gguf_checkpoint import BlockTensor, GgufCheckpoint
from engine.weights.gguf_config import ARCHITECTURES, METHOD, Architecture
from engine.weights.safetensors import Checkpoint, StoredRows, StoredTensor
from engine.weights.sources import Source, plain_source
from engine.weights.stored_format import QuantizationConfig, StoredFormat

_VALUES = 1 << 19  # expanded at a time: their float32 stays in the processor's cache
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias)")
_GATE, _UP, _DOWN = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"

_AGAIN = "The file is damaged: download it again"


@dataclass(frozen=True)
class Change:
    """A function that undoes what the converter did to some rows, float32 [rows, ...]."""

    undo: Callable[[Tensor], Tensor]
    rows: int = 1  # it needs a multiple of this number of rows


def find(checkpoint: Checkpoint, quantization: QuantizationConfig) -> dict[str, Source]:
    """Return the sources of all tensors, by their names in transformers.

    A tensor that the family has no place for keeps its name, so that it is refused by that name.
    """
    if not isinstance(checkpoint, GgufCheckpoint):
        raise ModelError(
            f"{checkpoint.folder}: quantization_config.quant_method in config.json is {METHOD}, "
            "but the weights are no GGUF files. config.json does not belong to this checkpoint"
        )
    family = ARCHITECTURES[checkpoint.metadata["general.architecture"]]
    found: dict[str, Source] = {}
    for name, stored in checkpoint.tensors.items():
        layer = _LAYER.fullmatch(name)
        if layer is None:
            whole, _, suffix = name.rpartition(".")
            target = f"{_OUTSIDE[whole]}.{suffix}" if whole in _OUTSIDE else name
            found[target] = _source(checkpoint, stored, _change(checkpoint, family, name))
            continue
        number, part, suffix = layer.groups()
        prefix = f"model.layers.{number}"
        if part in (_GATE, _UP, _DOWN):
            if part != _UP:
                target, source = _experts(checkpoint, family, name)
                found[f"{prefix}.mlp.experts.{target}"] = source
        elif part in family.names:
            target = f"{prefix}.{family.names[part]}"
            if not target.endswith(family.bare):
                target = f"{target}.{suffix}"
            found[target] = _source(checkpoint, stored, _change(checkpoint, family, name))
        else:
            found[name] = _source(checkpoint, stored, None)
    return found


_OUTSIDE: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}


def _change(checkpoint: GgufCheckpoint, family: Architecture, name: str) -> Change | None:
    """Return what undoes the converter's change of a tensor; None if it changed nothing."""
    if family.adds_one and name.endswith("norm.weight"):
        return Change(lambda values: values - 1)
    if family.permutes and (part := re.search(r"\.attn_([qk])\.", name)) is not None:
        stored, heads = checkpoint.tensors[name], checkpoint.heads(part[1])
        size, odd = divmod(stored.shape[0], heads)
        if odd or size % 2:
            raise ModelError(
                f"{stored.file}: {name} has {stored.shape[0]} rows for {heads} heads. {_AGAIN}"
            )
        return Change(lambda values: _unpermuted(values, size), size)
    return None


def _unpermuted(values: Tensor, size: int) -> Tensor:
    """Return the rows of whole heads of `size` rows in the order of transformers.

    The converter lets the two rows follow each other that rotary embeddings combine.
    """
    pairs = values.view(-1, size // 2, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def _source(checkpoint: Checkpoint, stored: StoredTensor, change: Change | None) -> Source:
    """Return the source of a tensor, after `change` if it needs one."""
    if change is None and not isinstance(stored, BlockTensor):
        return plain_source(checkpoint, stored)
    can_be_rows = change is None and isinstance(stored, BlockTensor)
    return Source(
        shape=_dense_shape(stored),
        fill=lambda out: _fill(checkpoint, stored, out, change),
        parts=(stored,),
        rows=(lambda dtype: BlockRows(checkpoint, stored, dtype)) if can_be_rows else None,
    )


def _dense_shape(stored: StoredTensor) -> tuple[int, ...]:
    return stored.dense_shape if isinstance(stored, BlockTensor) else stored.shape


def _fill(
    checkpoint: Checkpoint, stored: StoredTensor, out: Tensor, change: Change | None = None
) -> None:
    """Write the values of a tensor into `out`, some rows (of whole heads) at a time."""
    rows, *rest = _dense_shape(stored)
    if not rest:
        values = _expanded(stored, checkpoint.load(stored))
        out.copy_(change.undo(values) if change else values)
        return
    columns = torch.Size(rest).numel()
    together = change.rows if change else 1
    step = max(1, _VALUES // (columns * together)) * together
    for begin in range(0, rows, step):
        held = range(begin, min(begin + step, rows))
        raw, own = checkpoint.load(stored.part(held)), out[held.start : held.stop]
        if change is None and isinstance(stored, BlockTensor):
            expand_into(stored.type.name, raw, own)
        else:
            values = _expanded(stored, raw)
            own.copy_(change.undo(values) if change else values)


def _expanded(stored: StoredTensor, raw: Tensor) -> Tensor:
    """Return the float32 values of some entries of a stored tensor, or of a vector."""
    if not isinstance(stored, BlockTensor):
        return raw.float()
    values = expand_blocks(stored.type.name, raw.view(-1, stored.type.nbytes))
    return values.view(*raw.shape[:-1], -1)


class BlockRows(StoredRows):
    """A matrix in blocks, whose rows are read and expanded when they are needed."""

    def __init__(self, checkpoint: Checkpoint, stored: StoredTensor, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, stored)
        self._dtype = dtype

    def load(self) -> Tensor:
        """Return the whole matrix in new memory. Raises `ModelError` as `read` does."""
        out = torch.empty(_dense_shape(self._stored), dtype=self._dtype)
        _fill(self._checkpoint, self._stored, out)
        return out

    def read(self, rows: Sequence[int]) -> Tensor:
        """Return some rows in new memory, [len(rows), columns]."""
        return _expanded(self._stored, super().read(rows)).to(self._dtype)


def _experts(checkpoint: GgufCheckpoint, family: Architecture, name: str) -> tuple[str, Source]:
    """Return the name and the source of fused experts, given the name of their gate or down part.

    transformers keeps gate and up in one tensor: one above the other, or row by row in turn, and
    with the weights of the family's experts transposed or not.
    """
    stored, suffix = checkpoint.tensors[name], "_bias" if name.endswith(".bias") else ""
    if len(stored.shape) < 2:
        raise ModelError(f"{stored.file}: {name} has shape {list(stored.shape)}. {_AGAIN}")
    if _DOWN in name:
        return f"down_proj{suffix}", _fused(checkpoint, (stored,), family)
    up = checkpoint.tensors.get(name.replace(_GATE, _UP))
    if up is None or _dense_shape(up) != _dense_shape(stored):
        raise ModelError(f"{stored.file}: {name} has no up part of its shape. {_AGAIN}")
    return f"gate_up_proj{suffix}", _fused(checkpoint, (stored, up), family)


def _fused(checkpoint: Checkpoint, parts: tuple[StoredTensor, ...], family: Architecture) -> Source:
    """Return the source of experts [experts, rows, columns] or of their biases [experts, rows]."""
    experts, rows, *columns = _dense_shape(parts[0])
    turned, count = family.has_turned_experts and bool(columns), len(parts)
    shape = (experts, *columns, rows * count) if turned else (experts, rows * count, *columns)

    def place(index: int) -> slice:
        """Return the rows of a part in the fused tensor."""
        if family.has_turned_experts:
            return slice(index, None, count)
        return slice(index * rows, (index + 1) * rows)

    def fill(out: Tensor) -> None:
        for expert in range(experts):
            whole = out[expert].T if turned else out[expert]
            for index, part in enumerate(parts):
                one = part.part(range(expert, expert + 1))
                _fill(checkpoint, replace(one, shape=one.shape[1:]), whole[place(index)])

    return Source(
        shape=shape,
        fill=fill,
        parts=parts,
        experts=lambda held: _fused(checkpoint, tuple(p.part(held) for p in parts), family),
    )


FORMAT = StoredFormat(
    title="GGUF",
    detect=lambda quantization: quantization["quant_method"] == METHOD,
    find=find,
    expanded="GGUF weights",
)
