"""Tensors outside of layers and head, and buffers, which a model gets before it runs."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from engine.model.binder import bind
from engine.weights.outline import text_decoder
from engine.weights.safetensors import OtherTensor, StoredRows


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
            with _without_weights(module):
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


@contextmanager
def _without_weights(module: nn.Module) -> Iterator[None]:
    """Hide the parameters of a module, which may have their values: a draft's layers have."""
    own = module._parameters
    module._parameters = {
        name: None if value is None else nn.Parameter(torch.empty_like(value, device="meta"))
        for name, value in own.items()
    }
    try:
        yield
    finally:
        module._parameters = own
