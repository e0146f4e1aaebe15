"""Everything that is changed in the models of transformers; the rest of them is used unchanged.

A model is built on the `meta` device and keeps its own `forward`, so transformers handles embedding
scale, rope, soft caps and logit scales. Attention and experts are registered under names that the
model's configuration selects. Layers, decoder and, for some models, the rotary embedding are
replaced by modules of this package, and parameters are bound to our tensors. Under strict numerics,
activation functions run in pieces of whole blocks (`elementwise.py`).
"""

import copy
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.activations import ACT2CLS
from transformers.modeling_outputs import MoeModelOutputWithPast

from engine.library_call import find_key, library_call
from engine.model.attention import ATTENTION, attend
from engine.model.elementwise import apply_in_blocks
from engine.model.experts import EXPERTS, DeferredExperts, apply_experts
from engine.model.rope import LengthGroupedRotary
from engine.weights.config_file import CONFIG_NAME, read_config_values
from engine.weights.family import is_multimodal, make_config, text_config
from engine.weights.outline import decoder_layers
from engine.weights.safetensors import OtherTensor, StoredRows

# Classes of all activation functions that a configuration can name; some entries are (class, ...).
_NAMED_ACTIVATIONS: Mapping[str, Any] = ACT2CLS
_ACTIVATION_CLASSES = tuple(
    c[0] if isinstance(c, tuple) else c for c in _NAMED_ACTIVATIONS.values()
)


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
    if strict:
        model.config._experts_implementation = EXPERTS
        for activation in find_activations(model):
            activation.forward = partial(apply_in_blocks, activation.forward)
    return model


def empty_model(config: Any, dtype: torch.dtype) -> Any:
    """Return transformers' model without weights and without what text does not pass through."""
    from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

    auto: Any = AutoModelForMultimodalLM if is_multimodal(config) else AutoModelForCausalLM
    with torch.device("meta"):
        # The model keeps a configuration of its own, in which names of our code are set.
        model = auto.from_config(copy.deepcopy(config), dtype=dtype, trust_remote_code=False)
    if text_config(model.config) is not model.config:
        _keep_language_part(model)
    return model.eval()


def empty_reference(config: Any) -> Any:
    """Return transformers' model without weights, in float32, with its own plain functions."""
    model = empty_model(config, torch.float32)
    model.config._attn_implementation = "eager"
    model.config._experts_implementation = "eager"
    return model


def build_of_folder(folder: Path, config: Any, dtype: torch.dtype, *, strict: bool) -> Any:
    """Return the model of the configuration that `read_config` gave for a folder.

    Raises `ModelError` that names the key if the library cannot build it.
    """

    def build(values: Mapping[str, Any]) -> Any:
        return build_on_meta(make_config(values), dtype, strict=strict)

    def blame() -> str:
        return find_key(read_config_values(folder), build)

    with library_call(folder / CONFIG_NAME, blame):
        return build_on_meta(config, dtype, strict=strict)


def _keep_language_part(model: Any) -> None:
    """Remove the modules that text does not pass through: vision and audio towers, projectors."""
    kept = (model.get_decoder(), model.get_output_embeddings(), model.get_input_embeddings())
    inside = {id(module) for part in kept if part is not None for module in part.modules()}
    for holder in list(model.modules()):
        if id(holder) in inside or not inside.intersection(map(id, holder.modules())):
            continue
        for name, child in holder.named_children():
            if not inside.intersection(map(id, child.modules())):
                setattr(holder, name, None)
        for name, _ in [*holder.named_parameters(recurse=False)]:
            setattr(holder, name, None)


def find_activations(model: nn.Module) -> list[nn.Module]:
    """Return all modules of a model that are activation functions."""
    return [module for module in model.modules() if isinstance(module, _ACTIVATION_CLASSES)]


def place_tensors(
    model: Any, tensors: Mapping[str, OtherTensor], device: torch.device
) -> StoredRows | None:
    """Bind the tensors outside of layers and head, and compute the model's own buffers.

    The embedding table stays on the host, where rows are looked up. Everything else is copied to
    `device`. Return the embedding's rows if they stay in their file: then the rows that a forward
    needs are bound as its weight before each.

    Args:
        tensors: the tensors by their full names in the model.
    """
    embedding = model.get_input_embeddings()
    for module in model.modules():
        if module._non_persistent_buffers_set:
            where = torch.device("cpu") if module is embedding else device
            for name in module._non_persistent_buffers_set:
                module._buffers[name] = torch.empty_like(module._buffers[name], device=where)
            model._init_weights(module)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    on_host = names[id(embedding.weight)]
    rows = tensors[on_host]
    whole = {
        n: t.load() if isinstance(t, StoredRows) else t for n, t in tensors.items() if n != on_host
    }
    placed = {name: tensor.to(device) for name, tensor in whole.items()}
    if not isinstance(rows, StoredRows):
        bind(model, placed | {on_host: rows})
        return None
    bind(model, placed)
    embedding.padding_idx = None  # of a row of the whole matrix; it matters to training alone
    return rows


def replace_modules(model: Any, layers: Sequence[nn.Module], original_length: int | None) -> None:
    """Replace the decoder's layers and, where `original_length` is set, its rotary embedding.

    Afterwards a call of the decoder runs the new layers, and a call of the model computes only the
    head: it no longer calls the decoder. Call `model.get_decoder()` before this function.
    """
    decoder, modules = model.get_decoder(), decoder_layers(model)
    for index, layer in enumerate(layers):
        modules[index] = layer
    if original_length is not None:
        decoder.rotary_emb = LengthGroupedRotary(decoder.rotary_emb, original_length)
    setattr(model, model.base_model_prefix, _PassThrough())


def defer_experts(layer: nn.Module, path: str) -> DeferredExperts:
    """Replace the experts at `path` in a layer by `DeferredExperts`, and return these."""
    experts = DeferredExperts(layer.get_submodule(path))
    layer.set_submodule(path, experts)
    return experts


def attention_modules(layer: nn.Module) -> list[nn.Module]:
    """Return the modules of a layer that call `attend`."""
    return [module for module in layer.modules() if hasattr(module, "layer_idx")]


def set_batch(modules: Sequence[Any], batch: object) -> None:
    """Set the batch in attention modules, for `attend` to find.

    Not all layers of transformers pass their arguments on to attention.
    """
    for module in modules:
        module.batch = batch


class Binder:
    """An object that binds a module's parameters and buffers to new tensors in each pass.

    It looks up once where the module stores each tensor, and does not wrap borrowed tensors in
    `nn.Parameter`. Doing both in each pass would take more host time than choosing its tokens.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._holders: dict[str, tuple[dict[str, Any], str]] = {}

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Bind parameters and buffers of the module to tensors, given by their paths in it."""
        for path, tensor in tensors.items():
            holder, name = self._holders.get(path) or self._find(path)
            holder[name] = tensor

    def _find(self, path: str) -> tuple[dict[str, Any], str]:
        owner, _, name = path.rpartition(".")
        module = self._module.get_submodule(owner)
        holder: dict[str, Any] = module._parameters
        if name in module._buffers:
            holder = module._buffers
        self._holders[path] = holder, name
        return holder, name


def bind(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Bind a module's parameters and buffers permanently to tensors, given by their paths in it."""
    Binder(module).bind({p: nn.Parameter(t, requires_grad=False) for p, t in tensors.items()})


class _PassThrough(nn.Module):
    """A replacement for the decoder, so that the model's own forward computes only the head."""

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
