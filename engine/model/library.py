"""Everything that is changed in the models of transformers; the rest of them is used unchanged.

A model is built on the `meta` device and keeps its own `forward`, so transformers handles embedding
scale, rope, soft caps and logit scales. Attention and experts are registered under names that the
model's configuration selects. Layers, decoder and, for some models, the rotary embedding are
replaced by modules of this package, and parameters are bound to our tensors. Under strict numerics,
activation functions run in pieces of whole blocks (`elementwise.py`).
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2CLS
from transformers.modeling_outputs import MoeModelOutputWithPast

from engine.library_call import find_key, library_call
from engine.model.attention import ATTENTION, LayerRule, attend
from engine.model.binder import bind, without_weights
from engine.model.elementwise import apply_in_blocks
from engine.model.experts import EXPERTS, apply_copied_experts, apply_experts, apply_moe
from engine.model.latent import find_latent
from engine.model.recurrent import replace_functions
from engine.model.rope import LengthGroupedRotary, query_factors
from engine.spec import TILE
from engine.weights.config_file import read_config_values
from engine.weights.config_place import config_place
from engine.weights.family import (
    attention_layers,
    is_multimodal,
    kv_shape,
    make_config,
    text_config,
)
from engine.weights.outline import decoder_layers, text_decoder
from engine.weights.safetensors import OtherTensor, StoredRows

_RECORDED = f"{ATTENTION}-recorded"  # the name of `attend` while its calls are recorded
# Classes of all activation functions that a configuration can name; some entries are (class, ...).
_NAMED_ACTIVATIONS: Mapping[str, Any] = ACT2CLS
_ACTIVATION_CLASSES = tuple(
    c[0] if isinstance(c, tuple) else c for c in _NAMED_ACTIVATIONS.values()
)


# In these families the library scales the embeddings only where it looks them up itself.
_SCALED_WHEN_LOOKED_UP = frozenset({"falcon_h1"})


def build_on_meta(config: Any, dtype: torch.dtype, *, strict: bool) -> Any:
    """Return transformers' causal language model for a configuration, without weights.

    Args:
        config: the configuration that transformers read from the model's folder.
        dtype: the type of the parameters.
        strict: whether results must not depend on the batch (strict numerics).
    """
    from transformers.integrations.moe import ExpertsInterface

    AttentionInterface.register(ATTENTION, attend)
    ExpertsInterface.register(EXPERTS, apply_experts)
    model = empty_model(config, dtype)
    model.config._attn_implementation = ATTENTION
    _set_rules(model)
    replace_functions(model)
    own = text_config(model.config)
    if own.model_type in _SCALED_WHEN_LOOKED_UP:
        table = model.get_input_embeddings()
        table.forward = partial(_scale, table.forward, own.embedding_multiplier)
    untyped: list[Any] = [*model.modules()]
    for module in untyped:
        if type(module).__name__ == "Llama4TextMoe":  # it multiplies each row with each expert
            module.forward = partial(apply_moe, module, is_padded=strict)
            # What the library says of the experts of other families.
            module.experts.is_transposed, module.experts.has_bias = True, False
    if strict:
        model.config._experts_implementation = EXPERTS
        for activation in find_activations(model):
            activation.forward = partial(apply_in_blocks, activation.forward)
        for linear in _linears_outside_layers(model):
            linear.forward = partial(_apply_in_tiles, linear.forward)
    return model


def _set_rules(model: Any) -> None:
    """Set on each attention module what `attend` has to know of its layer."""
    kinds = getattr(text_config(model.config), "layer_types", None)
    places = {index: place for place, index in enumerate(attention_layers(model.config))}
    sources: dict[str, int] = {}  # the layer whose keys and values later ones share, by kind
    for module in attention_modules(model):
        index = int(module.layer_idx)
        if index not in places:
            continue
        if getattr(module, "store_full_length_kv", False):
            sources[module.layer_type] = places[index]
        is_shared = getattr(module, "is_kv_shared_layer", False)
        is_chunked = kinds is not None and kinds[index] == "chunked_attention"
        scale = None
        if getattr(module, "attn_temperature_tuning", False) and not module.use_rope:
            # The module's own code takes the number of a row in the tile for its position.
            module.attn_temperature_tuning = False
            scale = partial(query_factors, floor=module.floor_scale, strength=module.attn_scale)
        latent = find_latent(module)
        is_latent = kv_shape(model.config).is_latent
        assert is_latent == (latent is not None), "latent attention unlike that of DeepSeek-V2"
        if latent is not None:
            module.expand_kv = latent.join
        module.rule = LayerRule(
            layer=sources[module.layer_type] if is_shared else places[index],
            is_shared=is_shared,
            chunk=text_config(model.config).attention_chunk_size if is_chunked else None,
            query_scale=scale,
            latent=latent,
        )


def _linears_outside_layers(model: Any) -> list[Any]:
    """Return the decoder's linear layers that run over all rows of a pass at once."""
    inside = {id(module) for layer in decoder_layers(model) for module in layer.modules()}
    modules = text_decoder(model).modules()
    return [m for m in modules if isinstance(m, nn.Linear) and id(m) not in inside]


def _scale(function: Callable[[Tensor], Tensor], factor: float, x: Tensor) -> Tensor:
    return function(x) * factor


def _apply_in_tiles(product: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Return `product(x)` [..., R, out] of rows [..., R, in], computed by tiles of `TILE` rows."""
    return torch.cat([product(part) for part in torch.split(x, TILE, dim=-2)], dim=-2)


def empty_model(config: Any, dtype: torch.dtype, side: int = 0) -> Any:
    """Return transformers' model without weights and without what text does not pass through.

    Args:
        side: parts that text does not pass through are kept up to this number of weights.
    """
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    auto: Any = AutoModelForMultimodalLM if is_multimodal(config) else AutoModelForCausalLM
    build = partial(auto.from_config, dtype=dtype, trust_remote_code=False)
    with torch.device("meta"):
        # The model keeps a configuration of its own, in which names of our code are set.
        try:
            model = build(copy.deepcopy(config))
        except ImportError:  # of a package for a vision tower
            if not _replace_towers(config):
                raise
            model = build(copy.deepcopy(config))
    if text_config(model.config) is not model.config:
        _keep_language_part(model, side)
    return model.eval()


def _replace_towers(config: Any) -> bool:
    """Let the library build vision towers of the package timm as empty modules.

    Text does not pass through them. Return whether the configuration has such a tower.
    """
    from transformers import AutoModel
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    parts = [own for own in vars(config).values() if isinstance(own, PreTrainedConfig)]
    towers = [p for p in parts if MODEL_MAPPING_NAMES.get(p.model_type) == "TimmWrapperModel"]
    for kind in map(type, towers):
        AutoModel.register(
            kind, type("NoTower", (PreTrainedModel,), {"config_class": kind}), exist_ok=True
        )
    return bool(towers)


def empty_reference(config: Any, side: int = 0) -> Any:
    """Return transformers' model without weights, in float32, with its own plain functions.

    Args:
        side: that of `empty_model`.
    """
    model = empty_model(config, torch.float32, side)
    model.config._attn_implementation = "eager"
    model.config._experts_implementation = "eager"
    return model


def build_of_folder(folder: Path, config: Any, dtype: torch.dtype, *, strict: bool) -> Any:
    """Return the model of the configuration that `read_config` gave for a folder.

    Raises `ModelError` that names the key if the library cannot build it.
    """

    where = config_place(folder)

    def build(values: Mapping[str, Any]) -> Any:
        return build_on_meta(make_config(values), dtype, strict=strict)

    def blame() -> str:
        return find_key(read_config_values(folder), build, where.name)

    with where.naming(), library_call(where, blame):
        return build_on_meta(config, dtype, strict=strict)


def _keep_language_part(model: Any, side: int) -> None:
    """Remove the modules that text does not pass through: vision and audio towers, projectors.

    Those with at most `side` weights are kept.
    """
    kept = (text_decoder(model), model.get_output_embeddings(), model.get_input_embeddings())
    inside = {id(module) for part in kept if part is not None for module in part.modules()}
    for holder in list(model.modules()):
        if id(holder) in inside or not inside.intersection(map(id, holder.modules())):
            continue
        for name, child in holder.named_children():
            weights = sum(parameter.numel() for parameter in child.parameters())
            if not inside.intersection(map(id, child.modules())) and not 0 < weights <= side:
                setattr(holder, name, None)
        for name, parameter in [*holder.named_parameters(recurse=False)]:
            if parameter.numel() > side:
                setattr(holder, name, None)


def find_activations(model: nn.Module) -> list[nn.Module]:
    """Return all modules of a model that are activation functions."""
    return [module for module in model.modules() if isinstance(module, _ACTIVATION_CLASSES)]


def modules_with_owners(model: Any) -> Iterator[tuple[Any, Any]]:
    """Yield all modules, each with the innermost model of the library that it is part of.

    That model's `_init_weights` computes the module's buffers.
    """
    owners: dict[str, Any] = {}
    for path, module in model.named_modules():
        own = isinstance(module, PreTrainedModel)
        owners[path] = module if own else owners[path.rpartition(".")[0]]
        yield module, owners[path]


def token_tables(model: Any) -> list[Any]:
    """Return the modules with a row for each token: the embedding, then one for all layers, if any.

    The second one (Gemma 3n and 4) has a part for each layer, an input beside the hidden state.
    """
    tables = [
        model.get_input_embeddings(),
        getattr(text_decoder(model), "embed_tokens_per_layer", None),
    ]
    return [table for table in tables if table is not None]


def place_tensors(
    model: Any, tensors: Mapping[str, OtherTensor], device: torch.device
) -> list[StoredRows | None]:
    """Bind the tensors outside of layers and head, and compute the model's own buffers.

    Token tables stay on the host, where rows are looked up. Everything else is copied to `device`.
    Return for each of `token_tables` its rows if they stay in their file: then the rows that a
    forward needs are bound as its weight before each. Return None for a table in memory.

    Args:
        tensors: the tensors by their full names in the model.
    """
    tables = token_tables(model)
    on_host = {id(table) for table in tables}
    for module, owner in modules_with_owners(model):
        if module._non_persistent_buffers_set:
            where = torch.device("cpu") if id(module) in on_host else device
            for name in module._non_persistent_buffers_set:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=where)
            with without_weights(module):
                owner._init_weights(module)
    for module, owner in modules_with_owners(model):
        if module is owner:  # it may compute buffers of its layers
            owner._init_weights(module)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    looked_up = {names[id(table.weight)]: table for table in tables}
    placed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name not in looked_up:
            whole = tensor.load() if isinstance(tensor, StoredRows) else tensor
            placed[name] = whole.to(device)
        elif isinstance(tensor, StoredRows):
            # Of a row of the whole matrix; it matters to training alone.
            looked_up[name].padding_idx = None
        else:
            placed[name] = tensor
    bind(model, placed)
    rows = [tensors[name] for name in looked_up]
    return [own if isinstance(own, StoredRows) else None for own in rows]


def replace_modules(model: Any, layers: Sequence[nn.Module], original_length: int | None) -> None:
    """Replace the decoder's layers and, where `original_length` is set, its rotary embedding.

    Afterwards a call of the decoder runs the new layers, and a call of the model computes only the
    head: it no longer calls the decoder. Call `text_decoder` before this function.
    """
    decoder, modules = text_decoder(model), decoder_layers(model)
    for index, layer in enumerate(layers):
        modules[index] = layer
    if original_length is not None:
        decoder.rotary_emb = LengthGroupedRotary(decoder.rotary_emb, original_length)
    path = model.base_model_prefix
    if not hasattr(model, path):  # the library's name for it is wrong, or it is deeper inside
        path = next(path for path, module in model.named_modules() if module is decoder)
    model.set_submodule(path, _PassThrough(decoder))


def replace_expert_weights(layer: nn.Module, weights: Mapping[str, nn.ModuleList]) -> None:
    """Replace fused weights [E, ...] in a layer, given by their paths, by one module an expert."""
    for name, layers in weights.items():
        path, _, own = name.rpartition(".")
        experts: Any = layer.get_submodule(path)
        delattr(experts, own)
        experts.add_module(own, layers)
        experts.forward = partial(apply_copied_experts, experts)


def attention_modules(part: nn.Module) -> list[Any]:
    """Return the modules of a layer or a model that may call `attend`, in the layers' order."""
    return [m for m in part.modules() if getattr(m, "layer_idx", None) is not None]


def set_batch(modules: Sequence[Any], batch: object) -> None:
    """Set the batch in attention modules, for `attend` to find.

    Not all layers of transformers pass their arguments on to attention.
    """
    for module in modules:
        module.batch = batch


@dataclass(frozen=True)
class AttentionCall:
    """What an attention module has passed to `attend`: shapes, and its keyword arguments."""

    query: torch.Size  # [1, H, T, D]
    key: torch.Size  # [1, Hkv, T, D]
    value: torch.Size  # [1, Hkv, T, D]
    arguments: Mapping[str, Any]


@contextmanager
def recorded_attention(
    layers: Sequence[nn.Module],
) -> Iterator[dict[nn.Module, AttentionCall]]:
    """Record the last call of `attend` by each module of some layers within the block."""
    calls: dict[nn.Module, AttentionCall] = {}

    def record(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *others: Any, **named: Any
    ) -> Any:
        calls[module] = AttentionCall(query.shape, key.shape, value.shape, named)
        return attend(module, query, key, value, *others, **named)

    AttentionInterface.register(_RECORDED, record)
    attentions = [own for layer in layers for own in attention_modules(layer)]
    # Layers of Llama 4 have a `layer_idx` but no `config`, and do not call `attend`.
    configs = {id(own.config): own.config for own in attentions if hasattr(own, "config")}
    for config in configs.values():
        config._attn_implementation = _RECORDED
    try:
        yield calls
    finally:
        for config in configs.values():
            config._attn_implementation = ATTENTION


class _PassThrough(nn.Module):
    """A replacement for the decoder, so that the model's own forward computes only the head.

    It has the decoder's numbers, since some heads read factors from there (Falcon H1).
    """

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        vars(self).update({k: v for k, v in vars(decoder).items() if type(v) in (int, float)})

    @property
    def decoder(self) -> "_PassThrough":
        """The replacement itself: some families call the decoder of their base model."""
        return self

    def forward(self, *_: Any, inputs_embeds: Tensor, **__: Any) -> "_HeadInput":
        return _HeadInput(last_hidden_state=inputs_embeds)


class _HeadInput(MoeModelOutputWithPast):
    """The output of a decoder for any family's head: fields of images are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)
