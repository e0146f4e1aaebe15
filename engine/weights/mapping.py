"""The mapping from the tensors of a checkpoint to the tensors of the model.

Names are translated by transformers' own table (transformers/conversion_mapping.py), so that old
names, prefixes and experts stored one by one are handled exactly as by `from_pretrained`.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from engine.errors import ModelError
from engine.weights.config_place import ConfigError
from engine.weights.layout import TensorSpec
from engine.weights.outline import decoder_prefix, linear_weights
from engine.weights.safetensors import Checkpoint
from engine.weights.sources import (
    Expert,
    Source,
    merge_sources,
    plain_source,
    stack_sources,
    transpose_source,
)
from engine.weights.stored_format import (
    find_stored,
    is_activation_scale,
    stored_format,
    titles,
)

LARGEST_BIAS = 1 << 24  # values; more rows than any weight has
Wanted = Mapping[str, TensorSpec]  # the needed tensors, by their names in the model

_FLOAT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def find_sources(
    model: PreTrainedModel, checkpoint: Checkpoint, wanted: Wanted
) -> dict[str, Source]:
    """Return the source of every tensor in `wanted` (the model's state dict), by name.

    Raises `ModelError` if tensors are missing, unexpected, or have a wrong shape or dtype, or if
    the `quantization_config` is not supported.
    """
    names = _Names(model)
    sources: dict[str, Source] = {}
    groups: dict[str, dict[str, list[Source]]] = defaultdict(lambda: defaultdict(list))
    unexpected: dict[str, Path] = {}
    for stored_name, source in _stored_sources(model, checkpoint):
        target, pattern = names.translate(stored_name)
        file, name = source.parts[0].file, checkpoint.stored_name(stored_name)
        if not names.is_served(target):
            continue
        if target not in wanted:
            if not _is_zero_bias(stored_name, source):
                unexpected[stored_name] = file
        elif pattern is not None:
            groups[target][pattern].append(source)
        elif target in sources:
            raise ModelError(f"{file}: {name} is a second tensor for {target}")
        else:
            _check_source(checkpoint, target, source, wanted[target])
            sources[target] = source
    _refuse_unexpected(model, checkpoint, unexpected)
    for target, group in groups.items():
        converter = names.by_pattern[next(iter(group))]
        if not _is_supported(converter):
            raise ModelError(f"{checkpoint.folder}: {_reason(target, converter, model)}")
        if _is_merge(converter):
            source = _merge_experts(checkpoint, converter, target, group, wanted[target])
        else:
            source = _rearrange(checkpoint, converter, target, group, wanted[target])
        sources[target] = source
    _add_tied_sources(model, sources)
    if missing := sorted(wanted.keys() - sources.keys(), key=dot_natural_key):
        raise ModelError(
            f"{checkpoint.folder}: no tensor for {checkpoint.stored_name(missing[0])}"
            f"{_and_more(missing)} of {type(model).__name__}. The checkpoint is incomplete or of "
            "another architecture"
        )
    return sources


def _stored_sources(model: PreTrainedModel, checkpoint: Checkpoint) -> list[tuple[str, Source]]:
    """Return the checkpoint's sources with the names of dense tensors, in natural order."""
    found = find_stored(model.config, checkpoint)
    consumed = {part.name for source in found.values() for part in source.parts}
    has_format = stored_format(model.config) is not None
    for name, stored in checkpoint.tensors.items():
        if name not in consumed and not (has_format and is_activation_scale(name)):
            found[name] = plain_source(checkpoint, stored)
    return sorted(found.items(), key=lambda item: dot_natural_key(item[0]))


def linear_modules(model: PreTrainedModel) -> dict[str, tuple[str, ...]]:
    """Return the modules whose weights a checkpoint stores for each linear weight of a model.

    Fused experts that are stored one by one have the modules of their first expert, such as its
    gate and up projections. Other fused experts have their own name. Weights that are stored
    transposed, or in several parts, have no entry.
    """
    converters = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightConverter)]
    found: dict[str, tuple[str, ...]] = {}
    for name in linear_weights(model):
        own = next((c for c in converters if name.endswith(tuple(c.target_patterns))), None)
        if own is None:
            found[name] = (name.removesuffix(".weight"),)
        elif _is_merge(own):
            prefix = name.removesuffix(own.target_patterns[0])
            firsts = (pattern.replace("*", "0", 1) for pattern in own.source_patterns)
            found[name] = tuple(f"{prefix}{first}".removesuffix(".weight") for first in firsts)
    return found


class _Names:
    """The translation of stored names to one model's names, by transformers' table."""

    def __init__(self, model: PreTrainedModel) -> None:
        transforms = get_model_conversion_mapping(model)
        self._renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
        self._converters = [t for t in transforms if isinstance(t, WeightConverter)]
        self.by_pattern = {p: c for c in self._converters for p in c.source_patterns}
        self._prefix = model.base_model_prefix
        self._decoder = decoder_prefix(model)
        self._state = model.state_dict()

    def is_served(self, name: str) -> bool:
        """Return whether a name of the model is of its language part, not of a vision tower."""
        return name.startswith(self._decoder) or name in self._state

    def translate(self, stored: str) -> tuple[str, str | None]:
        """Return the model's name of a stored tensor, and the matching converter's pattern."""
        name, pattern = rename_source_key(
            stored, self._renamings, self._converters, self._prefix, self._state
        )
        if name not in self._state and stored in self._state:
            name, pattern = rename_source_key(stored, [], [], self._prefix, self._state)
        return name, pattern


def check_published_form(model: PreTrainedModel) -> None:
    """Raise `ConfigError` if published checkpoints of a model store tensors in an unsupported form.

    A checkpoint that is there is read instead, since it may store them as the model has them.
    """
    for converter in get_model_conversion_mapping(model):
        if isinstance(converter, WeightConverter) and not _is_supported(converter):
            backwards = converter.reverse_transform()
            for name in model.state_dict():
                if backwards.rename_source_key(name)[1] is not None:
                    raise ConfigError("model_type", f": {_reason(name, converter, model)}")


def _reason(name: str, converter: WeightConverter, model: PreTrainedModel) -> str:
    return (
        f"{name} is stored in a form that must be computed ({converter.operations}): "
        f"model_type {model.config.model_type!r} is not supported"
    )


def _is_supported(converter: WeightConverter) -> bool:
    """Return whether tensors that a converter makes can be read."""
    match converter.operations:
        case [Transpose()]:
            return len(converter.source_patterns) == len(converter.target_patterns) == 1
        case [Concatenate(dim=0)]:
            return len(converter.target_patterns) == 1
    return _is_merge(converter)


def _rearrange(
    checkpoint: Checkpoint,
    converter: WeightConverter,
    target: str,
    groups: Mapping[str, list[Source]],
    wanted: TensorSpec,
) -> Source:
    """Return the source of a tensor that is stored transposed, or as several blocks of rows."""
    found = [source for pattern in converter.source_patterns for source in groups.get(pattern, [])]
    if len(found) != len(converter.source_patterns):
        raise ModelError(
            f"{checkpoint.folder}: {len(found)} tensors for {target}, "
            f"{len(converter.source_patterns)} are needed. The checkpoint is incomplete"
        )
    operation = converter.operations[0]
    if isinstance(operation, Transpose):
        is_same = operation.check_dims and found[0].shape == wanted[1]
        is_flat = len(found[0].shape) <= max(operation.dim0, operation.dim1)
        source = found[0]
        if not is_same and not is_flat:
            source = transpose_source(source, operation.dim0, operation.dim1)
    else:
        for source in found:
            _check_source(
                checkpoint, target, source, (wanted[0], (*source.shape[:1], *wanted[1][1:]))
            )
        source = stack_sources(found)
    _check_source(checkpoint, target, source, wanted)
    return source


def _is_merge(converter: WeightConverter) -> bool:
    """Return whether a converter only stacks experts along dim 0 and concatenates their rows."""
    match converter.operations:
        case [MergeModulelist(dim=0)]:
            return len(converter.source_patterns) == 1
        case [MergeModulelist(dim=0), Concatenate(dim=1)]:
            return True
    return False


def _merge_experts(
    checkpoint: Checkpoint,
    converter: WeightConverter,
    target: str,
    groups: Mapping[str, list[Source]],
    wanted: TensorSpec,
) -> Source:
    """Return a source of a fused tensor [experts, rows, columns], made of one source per expert."""
    dtype, (experts, rows, columns) = wanted
    pieces: list[tuple[Expert, Source]] = []
    begin = 0
    for pattern in converter.source_patterns:
        group = groups.get(pattern, [])
        if len(group) != experts:
            raise ModelError(
                f"{checkpoint.folder}: {len(group)} tensors *{pattern} for the {experts} experts "
                f"of {target}. The checkpoint is incomplete"
            )
        height = group[0].shape[0] if group[0].shape else 0
        for expert, source in enumerate(group):
            name = f"expert {expert} of {target}"
            _check_source(checkpoint, name, source, (dtype, (height, columns)))
            pieces.append(((expert, slice(begin, begin + height)), source))
        begin += height
    if begin != rows:
        raise ModelError(
            f"{checkpoint.folder}: the experts of {target} have {begin} rows, {rows} are needed. "
            f"{checkpoint.remedy}"
        )
    return merge_sources((experts, rows, columns), pieces)


def _check_source(checkpoint: Checkpoint, name: str, source: Source, wanted: TensorSpec) -> None:
    """Raise `ModelError` unless the source gives a tensor of the wanted dtype and shape.

    A plain source of another kind of dtype is refused, since it has no scales to convert it.
    """
    stored, (dtype, shape) = source.parts[0], wanted
    is_float = dtype in _FLOAT_DTYPES and stored.dtype in _FLOAT_DTYPES
    if source.is_plain and not is_float and stored.dtype != dtype:
        raise ModelError(
            f"{stored.file}: {stored.name} has dtype {stored.dtype}, but {name} is {dtype}. "
            f"Quantized checkpoints are only read as {', '.join(titles())}, which "
            "quantization_config of config.json must name"
        )
    if source.shape != shape:
        does = "has shape" if source.is_plain else "expands to"
        raise ModelError(
            f"{stored.file}: {stored.name} {does} {list(source.shape)}, but {name} needs "
            f"{list(shape)}. {checkpoint.remedy}"
        )


def _add_tied_sources(model: PreTrainedModel, sources: dict[str, Source]) -> None:
    """Give tied tensors that are not stored the source of the tensor they are tied to."""
    tied: Mapping[str, str] = model.all_tied_weights_keys
    for target, twin in tied.items():
        for absent, present in ((target, twin), (twin, target)):
            if absent not in sources and present in sources:
                sources[absent] = sources[present]


def _is_zero_bias(name: str, source: Source) -> bool:
    """Return whether a tensor is a bias of zeros, as tools of GPTQ store for layers without one."""
    is_bias = name.endswith(".bias") and source.is_plain and len(source.shape) == 1
    if not is_bias or source.shape[0] > LARGEST_BIAS:
        return False
    values = torch.empty(source.shape, dtype=torch.float32)
    source.fill(values)
    return not values.any()


def _refuse_unexpected(
    model: PreTrainedModel, checkpoint: Checkpoint, files: Mapping[str, Path]
) -> None:
    """Raise `ModelError` for tensors that the model lacks and transformers does not drop."""
    patterns = [*(model._keys_to_ignore_on_load_unexpected or ()), r"rotary_emb\.inv_freq"]
    names = [name for name in files if not any(re.search(pattern, name) for pattern in patterns)]
    if names:
        raise ModelError(
            f"{files[names[0]]}: unexpected tensor {checkpoint.stored_name(names[0])}"
            f"{_and_more(names)}: the model has no place for it. {checkpoint.remedy}"
        )


def _and_more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
