"""All that is set on transformers' own modules; apart from this its models are used as they are.

A model is built on the `meta` device and keeps its own `forward`: embedding scale, rope, soft caps
and logit scales stay the library's business. It finds our attention and experts by their registered
names, its layers, rotary embedding and decoder replaced by ours, and its parameters bound to
tensors of ours. Under strict numerics its activation functions run in pieces that we choose.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.activations import ACT2CLS
from transformers.modeling_outputs import MoeModelOutputWithPast

from engine.model.attention import ATTENTION, attend
from engine.model.elementwise import apply_in_blocks
from engine.model.experts import EXPERTS, DeferredExperts, apply_experts
from engine.model.rope import LengthGroupedRotary
from engine.weights.safetensors import OtherTensor, StoredRows

# The classes of all activation functions that a configuration can name.
_NAMED: Mapping[str, Any] = ACT2CLS
_ACTIVATIONS = tuple(c[0] if isinstance(c, tuple) else c for c in _NAMED.values())


def build_on_meta(config: Any, dtype: torch.dtype, *, strict: bool) -> Any:
    """Return the library's causal model of this configuration, without weights."""
    from transformers import AutoModelForCausalLM
    from transformers.integrations.moe import ExpertsInterface

    AttentionInterface.register(ATTENTION, attend)
    ExpertsInterface.register(EXPERTS, apply_experts)
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype, trust_remote_code=False)
    model.config._attn_implementation = ATTENTION
    if strict:
        model.config._experts_implementation = EXPERTS
        for activation in activations(model):
            activation.forward = partial(apply_in_blocks, activation.forward)
    return model.eval()


def activations(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a model that are activation functions."""
    return [module for module in model.modules() if isinstance(module, _ACTIVATIONS)]


def place(
    model: Any, tensors: Mapping[str, OtherTensor], device: torch.device
) -> StoredRows | None:
    """Bind all tensors outside of layers and head, by full name, and compute the model's buffers.

    The embedding stays on the host, where its rows are gathered; the rest goes to `device`. Return
    the embedding's rows if they stay in their file: then its weight is bound for each forward.
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
    """Put these layers in place of the decoder's, and a rotary embedding that knows lengths.

    Afterwards the decoder (`model.get_decoder()`, asked for before) runs the layers, and the
    model's own forward computes the head alone.
    """
    decoder = model.get_decoder()
    for index, layer in enumerate(layers):
        decoder.layers[index] = layer
    if original_length is not None:
        decoder.rotary_emb = LengthGroupedRotary(decoder.rotary_emb, original_length)
    setattr(model, model.base_model_prefix, _PassThrough())


def defer_experts(layer: nn.Module, path: str) -> DeferredExperts:
    """Replace a layer's experts by some that keep their rows until the weights have arrived."""
    experts = DeferredExperts(layer.get_submodule(path))
    layer.set_submodule(path, experts)
    return experts


class Binder:
    """Points a module's parameters and buffers at tensors, pass after pass.

    Where each of them is kept is looked up once, and borrowed weights are not wrapped into
    parameters: both would take more of a pass's host time than the choice of its tokens.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._holders: dict[str, tuple[dict[str, Any], str]] = {}

    def bind(self, tensors: Mapping[str, Tensor]) -> None:
        """Tensors named by their path."""
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
    """Point a module's parameters and buffers at these tensors, named by their path, for good."""
    Binder(module).bind({p: nn.Parameter(t, requires_grad=False) for p, t in tensors.items()})


class _PassThrough(nn.Module):
    """Stands in for the decoder when the model's own forward computes the head alone."""

    def forward(self, inputs_embeds: Tensor, **_: Any) -> MoeModelOutputWithPast:
        return MoeModelOutputWithPast(last_hidden_state=inputs_embeds)
