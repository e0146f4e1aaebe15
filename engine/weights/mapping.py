"""Which tensors of a checkpoint make which tensor of the model.

Names are translated by the library's own table (transformers/conversion_mapping.py), so that old
names, prefixes and experts stored one by one are understood exactly as `from_pretrained` does.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from engine.errors import ModelError
from engine.weights.formats import mxfp4, nf4
from engine.weights.safetensors import Checkpoint, StoredTensor
from engine.weights.sources import Direct, Mxfp4, Piece, Source, StoredNf4, check_dtype, check_shape

Wanted = Mapping[str, tuple[torch.dtype, tuple[int, ...]]]  # model tensor -> dtype, shape

_NF4_STATE = "quant_state.bitsandbytes__nf4"
_NF4_STATISTICS = ("absmax", "quant_map", "nested_absmax", "nested_quant_map", _NF4_STATE)
_MXFP4_PARTS = ("_blocks", "_scales")


def find_sources(
    model: PreTrainedModel, checkpoint: Checkpoint, wanted: Wanted
) -> dict[str, Source]:
    """The source of every tensor in `wanted` (the model's state dict).

    Raises `ModelError` for tensors that are missing, unexpected, of a wrong shape or dtype, and
    for a `quantization_config` that is not supported.
    """
    packed = _packed_sources(model, checkpoint)
    consumed = {part.name for parts, _ in packed.values() for part in parts}
    plain = [stored for name, stored in checkpoint.tensors.items() if name not in consumed]
    names = _Names(model)
    sources: dict[str, Source] = {}
    for stored_name, (_, source) in packed.items():
        target, pattern = names.target(stored_name)
        if target not in wanted:
            raise _unexpected(checkpoint, [stored_name])
        if pattern is not None:
            raise ModelError(
                f"{checkpoint.tensors[stored_name].file}: {stored_name}: experts quantized one by "
                "one are not supported. Use the unquantized checkpoint with `quantize: nf4`"
            )
        _check_packed(target, source, wanted[target][1])
        sources[target] = source
    sources |= _plain_sources(model, checkpoint, plain, names, wanted)
    _add_tied(model, sources)
    if missing := sorted(wanted.keys() - sources.keys(), key=dot_natural_key):
        raise ModelError(
            f"{checkpoint.folder}: no tensor for {missing[0]}{_more(missing)} of "
            f"{type(model).__name__}. The checkpoint is incomplete or of another architecture"
        )
    return sources


class _Names:
    """The library's translation of stored names for one model."""

    def __init__(self, model: PreTrainedModel) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self._by_pattern = {p: c for c in self._converters for p in c.source_patterns}
        self._prefix = model.base_model_prefix
        self._state = model.state_dict()

    def target(self, stored: str) -> tuple[str, str | None]:
        """The model tensor a stored one belongs to, and the converter's pattern it matched."""
        name, pattern = rename_source_key(
            stored, self._renamings, self._converters, self._prefix, self._state
        )
        if name not in self._state and stored in self._state:
            name, pattern = rename_source_key(stored, [], [], self._prefix, self._state)
        return name, pattern

    def converter(self, pattern: str) -> WeightConverter:
        return self._by_pattern[pattern]


def _plain_sources(
    model: PreTrainedModel,
    checkpoint: Checkpoint,
    plain: Iterable[StoredTensor],
    names: _Names,
    wanted: Wanted,
) -> dict[str, Source]:
    sources: dict[str, Source] = {}
    collected: dict[str, dict[str, list[StoredTensor]]] = defaultdict(lambda: defaultdict(list))
    unexpected: list[str] = []
    for stored in sorted(plain, key=lambda stored: dot_natural_key(stored.name)):
        target, pattern = names.target(stored.name)
        if target not in wanted:
            unexpected.append(stored.name)
        elif pattern is not None:
            collected[target][pattern].append(stored)
        else:
            if target in sources:
                raise ModelError(f"{stored.file}: {stored.name} is a second tensor for {target}")
            dtype, shape = wanted[target]
            check_dtype(target, stored, dtype)
            check_shape(target, stored, shape)
            sources[target] = Direct(checkpoint, (Piece(stored),))
    if unexpected := _not_ignored(model, unexpected):
        raise _unexpected(checkpoint, unexpected)
    for target, groups in collected.items():
        converter = names.converter(next(iter(groups)))
        if not _only_merges(converter):
            raise ModelError(
                f"{checkpoint.folder}: {target} is stored in a form that must be computed "
                f"({converter.operations}): model_type {model.config.model_type!r} is not supported"
            )
        sources[target] = _merged(checkpoint, converter, target, groups, wanted[target])
    return sources


def _only_merges(converter: WeightConverter) -> bool:
    """Experts stacked along dim 0, then (gate and up) concatenated along their rows."""
    match converter.operations:
        case [MergeModulelist(dim=0)]:
            return len(converter.source_patterns) == 1
        case [MergeModulelist(dim=0), Concatenate(dim=1)]:
            return True
    return False


def _merged(
    checkpoint: Checkpoint,
    converter: WeightConverter,
    target: str,
    groups: Mapping[str, list[StoredTensor]],
    wanted: tuple[torch.dtype, tuple[int, ...]],
) -> Direct:
    """Each expert's tensor goes to its rows of the fused [experts, rows, columns] tensor."""
    dtype, (experts, rows, columns) = wanted
    pieces: list[Piece] = []
    begin = 0
    for pattern in converter.source_patterns:
        group = groups.get(pattern, [])
        if len(group) != experts:
            raise ModelError(
                f"{checkpoint.folder}: {len(group)} tensors *{pattern} for the {experts} experts "
                f"of {target}. The checkpoint is incomplete"
            )
        height = group[0].shape[0] if group[0].shape else 0
        for expert, stored in enumerate(group):
            check_dtype(target, stored, dtype)
            check_shape(f"expert {expert} of {target}", stored, (height, columns))
            pieces.append(Piece(stored, (expert, slice(begin, begin + height))))
        begin += height
    if begin != rows:
        raise ModelError(
            f"{checkpoint.folder}: the experts of {target} have {begin} rows, {rows} are needed. "
            "config.json does not belong to this checkpoint"
        )
    return Direct(checkpoint, tuple(pieces))


def _add_tied(model: PreTrainedModel, sources: dict[str, Source]) -> None:
    """A tied tensor that is not stored is read from its twin, whichever of the two is there."""
    tied: Mapping[str, str] = model.all_tied_weights_keys
    for target, twin in tied.items():
        for absent, present in ((target, twin), (twin, target)):
            if absent not in sources and present in sources:
                sources[absent] = sources[present]


def _not_ignored(model: PreTrainedModel, names: list[str]) -> list[str]:
    """Unexpected names less those that the library itself drops in silence."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
    return [name for name in names if not any(re.search(pattern, name) for pattern in patterns)]


def _unexpected(checkpoint: Checkpoint, names: list[str]) -> ModelError:
    file = checkpoint.tensors[names[0]].file
    return ModelError(
        f"{file}: unexpected tensor {names[0]}{_more(names)}: the model has no place for it. "
        "config.json does not belong to this checkpoint"
    )


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


_Packed = dict[str, tuple[list[StoredTensor], Mxfp4 | StoredNf4]]  # dense name -> parts, source


def _packed_sources(model: PreTrainedModel, checkpoint: Checkpoint) -> _Packed:
    """Sources of the tensors that the checkpoint's own quantization stores in several parts."""
    method = quantization_method(model)
    if method == "bitsandbytes":
        return _stored_nf4(checkpoint)
    return _stored_mxfp4(checkpoint) if method == "mxfp4" else {}


def quantization_method(model: PreTrainedModel) -> str | None:
    """`bitsandbytes` (nf4), `mxfp4` or None; any other quantization is refused by name."""
    config: Any = getattr(model.config, "quantization_config", None)
    if config is None:
        return None
    values: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    method = str(getattr(values.get("quant_method"), "value", values.get("quant_method")))
    if method == "mxfp4":
        return method
    four_bit = values.get("load_in_4bit") or values.get("_load_in_4bit")
    if method == "bitsandbytes" and four_bit and values.get("bnb_4bit_quant_type") == "nf4":
        return method
    kind = values.get("bnb_4bit_quant_type") if four_bit else values.get("fmt", "")
    raise ModelError(
        f"config.json: quantization_config.quant_method {method!r} {kind or ''} is not supported; "
        "bitsandbytes 4-bit nf4 and mxfp4 are. Use the unquantized checkpoint "
        "(with `quantize: nf4` for a small one)"
    )


def _stored_nf4(checkpoint: Checkpoint) -> _Packed:
    packed: _Packed = {}
    suffix = "." + _NF4_STATE
    for name in [name for name in checkpoint.tensors if name.endswith(suffix)]:
        weight = name.removesuffix(suffix)
        parts = {
            part: checkpoint.tensors[f"{weight}.{part}"]
            for part in _NF4_STATISTICS
            if f"{weight}.{part}" in checkpoint.tensors
        }
        if weight not in checkpoint.tensors or "absmax" not in parts:
            raise ModelError(
                f"{parts[_NF4_STATE].file}: {name} is there, but not its weight and absmax"
            )
        codes = checkpoint.tensors[weight]
        state = nf4.parse_state(checkpoint.load(parts[_NF4_STATE]), name)
        nested = {"nested_blocksize", "nested_offset"} <= state.keys()
        if "nested_absmax" in parts and not (nested and "nested_quant_map" in parts):
            raise ModelError(f"{codes.file}: {name}: incomplete double quantization of {weight}")
        used = {part: parts[part] for part in parts if part not in ("quant_map", _NF4_STATE)}
        packed[weight] = ([codes, *parts.values()], StoredNf4(checkpoint, codes, used, state))
    return packed


def _stored_mxfp4(checkpoint: Checkpoint) -> _Packed:
    packed: _Packed = {}
    for name in [name for name in checkpoint.tensors if name.endswith(_MXFP4_PARTS[0])]:
        dense = name.removesuffix(_MXFP4_PARTS[0])
        blocks, scales = checkpoint.tensors[name], checkpoint.tensors.get(dense + _MXFP4_PARTS[1])
        if scales is None or scales.shape != blocks.shape[:-1]:
            raise ModelError(f"{blocks.file}: {name} has no {dense}{_MXFP4_PARTS[1]} of its shape")
        packed[dense] = ([blocks, scales], Mxfp4(checkpoint, blocks, scales))
    return packed


def _check_packed(target: str, source: Mxfp4 | StoredNf4, shape: tuple[int, ...]) -> None:
    if isinstance(source, Mxfp4):
        stored = source.blocks
        found = mxfp4.expanded_shape(stored.shape)
    else:
        stored, found = source.codes, source.shape
        weights = torch.Size(found).numel()
        blocks = torch.Size(source.statistics["absmax"].shape).numel()
        if (weights + 1) // 2 != stored.nbytes or -(-weights // source.block) != blocks:
            raise ModelError(
                f"{stored.file}: {stored.name} has {stored.nbytes} bytes and {blocks} blocks, not "
                f"those of {weights} weights in blocks of {source.block}. Download it again"
            )
    if found != shape:
        raise ModelError(
            f"{stored.file}: {stored.name} expands to {list(found)}, but {target} needs "
            f"{list(shape)}. config.json does not belong to this checkpoint"
        )
