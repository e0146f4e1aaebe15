"""GGUF files: the tensors of llama.cpp's converter, under its names and in its order of rows.

Matrices in blocks stay packed, as rows of blocks in the order of transformers, or are expanded when
they are read; either way in float32, then rounded once to the model's type. What the converter
changed is undone: it permutes the rows of q and k of llama, adds 1 to the norms of Gemma, and
separates the gate and up parts of fused experts. A tensor whose parts differ in type is always
expanded when it is read.

Source: convert_hf_to_gguf.py and gguf-py/gguf/tensor_mapping.py of llama.cpp.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from engine.errors import ModelError
from engine.weights.config_place import ConfigError
from engine.weights.gguf_blocks import count_damaged, expand_blocks, expand_into
from engine.weights.gguf_checkpoint import BlockTensor, GgufCheckpoint
from engine.weights.gguf_config import ARCHITECTURES, METHOD, OUTSIDE, TYPED, Architecture
from engine.weights.gguf_file import TYPES, BlockType
from engine.weights.gguf_keys import FAMILY
from engine.weights.layout import Fields
from engine.weights.safetensors import Checkpoint, StoredRows, StoredTensor
from engine.weights.sources import Source, plain_source
from engine.weights.stored_format import Packing, QuantizationConfig, Shape, StoredFormat

_VALUES = 1 << 19  # read at a time, where rows cannot be read into their place
_LAYER = re.compile(r"blk\.(\d+)\.(.+)\.(weight|bias|scale)")
_GATE, _UP, _DOWN = "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"
_GATE_UP = "ffn_gate_up_exps"  # both in one tensor, as transformers has them
_FUSED = {
    _GATE: "gate_up_proj",
    _UP: "gate_up_proj",
    _GATE_UP: "gate_up_proj",
    _DOWN: "down_proj",
}
_LIST = "*"  # ends the path of a list of modules, whose tensors are one in the file
_TURNED = "_turned"  # ends the suffix of experts that transformers keeps transposed

_AGAIN = "The file is damaged: download it again"


@dataclass(frozen=True)
class Change:
    """A function that undoes what the converter did to a tensor.

    Args:
        undo: returns some values, float32, or rows of values or of blocks, as they were before.
        rows: the number of rows that it moves together; 0: it changes values.
    """

    undo: Callable[[Tensor], Tensor]
    rows: int = 0


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
        target, part = _target(family, name)
        if part in _FUSED:
            if part != _UP:
                found[target] = _experts(checkpoint, family, name)
        elif _LIST in target:
            found |= _rows(checkpoint, stored, target)
        else:
            found[target] = _source(checkpoint, stored, _change(checkpoint, family, name))
    return found


def plan(model: PreTrainedModel, quantization: QuantizationConfig) -> dict[str, Fields]:
    """Return the packed fields of the matrices in blocks, whose types config.json lists."""
    family, types = ARCHITECTURES.get(str(quantization.get(FAMILY))), quantization.get(TYPED)
    if family is None or not isinstance(types, dict):
        raise ConfigError(
            "quantization_config",
            f" of {METHOD} has no {FAMILY} and {TYPED} as it is made from a GGUF file. Give that "
            "file",
        )
    kinds: dict[str, list[str]] = defaultdict(list)
    for name, kind in types.items():
        target, part = _target(family, name)
        kinds[target] += [str(kind)] * (2 if part == _GATE_UP else 1)
    for target, twin in model.all_tied_weights_keys.items():
        if target not in kinds and twin in kinds:
            kinds[target] = kinds[twin]
    found: dict[str, Fields] = {}
    for name, tensor in model.state_dict().items():
        parts, own = (2 if name.endswith(f".experts.{_FUSED[_GATE]}") else 1), kinds[name]
        if len(own) == parts and len(set(own)) == 1:
            turned = family.has_turned_experts and ".experts." in name
            found[name] = _packed(own[0], tuple(tensor.shape), turned=turned)
    return found


def _target(family: Architecture, name: str) -> tuple[str, str]:
    """Return a tensor's name in transformers, and the part of a layer that it is.

    A tensor that the family has no place for keeps its name.
    """
    layer = _LAYER.fullmatch(name)
    if layer is None:
        whole, _, suffix = name.rpartition(".")
        return (f"{OUTSIDE[whole]}.{suffix}" if whole in OUTSIDE else name), ""
    number, part, suffix = layer.groups()
    prefix = f"model.layers.{number}"
    if (path := family.names.get(f"{part}.{suffix}")) is not None:
        return f"{prefix}.{path}", ""
    if part in _FUSED and suffix != "scale":
        bias = "_bias" if suffix == "bias" else ""
        return f"{prefix}.{family.experts}.{_FUSED[part]}{bias}", part
    if part not in family.names:
        return name, ""
    return f"{prefix}.{family.names[part]}.{suffix}", part


def _packed(kind: str, shape: tuple[int, ...], *, turned: bool = False) -> Fields:
    """Return the packed field of a tensor of this dense shape; none for vectors and plain types.

    Args:
        turned: whether the rows in blocks are the last dimension of the dense tensor.
    """
    type_ = _BLOCKS.get(kind)
    if type_ is None or len(shape) < 2:
        return {}
    rows, columns = (shape[-1], shape[-2]) if turned else shape[-2:]
    blocks, rest = divmod(columns, type_.size)
    packed = (*shape[:-2], rows, blocks * type_.nbytes)
    return {} if rest else {_suffix(kind, turned=turned): (torch.uint8, packed)}


def _suffix(kind: str, *, turned: bool) -> str:
    return f".{kind.lower()}{_TURNED if turned else ''}"


_BLOCKS = {type_.name: type_ for type_ in TYPES.values() if not type_.is_plain}


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
    """Return the rows of whole heads of `size` rows, of any kind, in the order of transformers.

    The converter lets the two rows follow each other that rotary embeddings combine.
    """
    pairs = values.view(-1, size // 2, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def _source(checkpoint: Checkpoint, stored: StoredTensor, change: Change | None) -> Source:
    """Return the source of a tensor, after `change` if it needs one."""
    if change is None and not isinstance(stored, BlockTensor):
        return plain_source(checkpoint, stored)
    packed: Fields = {}
    if isinstance(stored, BlockTensor) and (change is None or change.rows):
        packed = _packed(stored.type.name, stored.dense_shape)
    can_be_rows = change is None and isinstance(stored, BlockTensor)
    return Source(
        shape=_dense_shape(stored),
        fill=lambda out: _fill(checkpoint, stored, out, change),
        parts=(stored,),
        packed=packed,
        rows=(lambda dtype: BlockRows(checkpoint, stored, dtype)) if can_be_rows else None,
    )


def _rows(checkpoint: Checkpoint, stored: StoredTensor, target: str) -> dict[str, Source]:
    """Return the sources of the tensors of a list of modules, which are the rows of one tensor."""
    found: dict[str, Source] = {}
    for row in range(stored.shape[0] if len(stored.shape) > 1 else 0):
        one = stored.part(range(row, row + 1))
        source = _source(checkpoint, replace(one, shape=one.shape[1:]), change=None)
        found[target.replace(_LIST, str(row))] = replace(source, packed={})
    return found


def _dense_shape(stored: StoredTensor) -> tuple[int, ...]:
    return stored.dense_shape if isinstance(stored, BlockTensor) else stored.shape


def _fill(
    checkpoint: Checkpoint, stored: StoredTensor, out: Tensor, change: Change | None = None
) -> None:
    """Write a tensor into `out`, some rows (of whole heads) at a time.

    Blocks stay packed if `out` is uint8, and are expanded into any other dtype.
    """
    rows, *rest = _dense_shape(stored)
    if not rest:
        values = _expanded(stored, checkpoint.load(stored))
        out.copy_(change.undo(values) if change else values)
        return
    if out.dtype == torch.uint8 and change is None and out.is_contiguous():
        checkpoint.read(stored, out)
        return
    together = max(change.rows, 1) if change else 1
    step = max(1, _VALUES // (torch.Size(rest).numel() * together)) * together
    for begin in range(0, rows, step):
        held = range(begin, min(begin + step, rows))
        raw, own = checkpoint.load(stored.part(held)), out[held.start : held.stop]
        if change is not None and not change.rows:
            own.copy_(change.undo(_expanded(stored, raw)))
            continue
        if change is not None:
            raw = change.undo(raw)
        if isinstance(stored, BlockTensor) and out.dtype != torch.uint8:
            expand_into(stored.type.name, raw, own)
        else:
            own.copy_(raw)


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


def _experts(checkpoint: GgufCheckpoint, family: Architecture, name: str) -> Source:
    """Return the source of fused experts, given the name of any of their parts but the up part.

    transformers keeps gate and up in one tensor: one above the other, or row by row in turn, and
    with the weights of the family's experts transposed or not.
    """
    stored = checkpoint.tensors[name]
    if _GATE not in name:
        return _fused(checkpoint, (stored,), family)
    return _fused(checkpoint, (stored, checkpoint.tensors[name.replace(_GATE, _UP)]), family)


def _fused(checkpoint: Checkpoint, parts: tuple[StoredTensor, ...], family: Architecture) -> Source:
    """Return the source of experts [experts, rows, columns] or of their biases [experts, rows].

    They can stay packed if all parts have the same type of blocks.
    """
    experts, rows, *columns = _dense_shape(parts[0])
    turned, count = family.has_turned_experts and bool(columns), len(parts)
    shape = (experts, *columns, rows * count) if turned else (experts, rows * count, *columns)
    types = {part.type.name if isinstance(part, BlockTensor) else "" for part in parts}
    is_packed = len(types) == 1 and columns
    packed = _packed(next(iter(types)), shape, turned=turned) if is_packed else {}

    def place(index: int) -> slice:
        """Return the rows of a part in the fused tensor."""
        if family.has_turned_experts:
            return slice(index, None, count)
        return slice(index * rows, (index + 1) * rows)

    def fill(out: Tensor) -> None:
        is_packed = out.dtype == torch.uint8
        for expert in range(experts):
            whole = out[expert].T if turned and not is_packed else out[expert]
            for index, part in enumerate(parts):
                one = part.part(range(expert, expert + 1))
                _fill(checkpoint, replace(one, shape=one.shape[1:]), whole[place(index)])

    return Source(
        shape=shape,
        fill=fill,
        parts=parts,
        packed=packed,
        why_expanded="parts of experts differ in type" if len(types) > 1 else "",
        experts=lambda held: _fused(checkpoint, tuple(p.part(held) for p in parts), family),
    )


def _packing(type_: BlockType, *, turned: bool) -> Packing:
    """Return the packing of rows of blocks of this type."""

    def dense_shape(packed: Shape) -> Shape:
        *outer, rows, nbytes = packed
        columns = nbytes // type_.nbytes * type_.size
        return (*outer, columns, rows) if turned else (*outer, rows, columns)

    def expand(blocks: Tensor, out: Tensor) -> None:
        expand_into(type_.name, blocks, out.transpose(-1, -2) if turned else out)

    return Packing(
        title=type_.name,
        suffixes=(_suffix(type_.name, turned=turned),),
        dense_shape=dense_shape,
        expand=expand,
        count_damaged=partial(count_damaged, type_.name),
    )


FORMAT = StoredFormat(
    title="GGUF",
    detect=lambda quantization: quantization["quant_method"] == METHOD,
    find=find,
    plan=plan,
)
PACKINGS = tuple(
    _packing(type_, turned=turned) for type_ in _BLOCKS.values() for turned in (False, True)
)
