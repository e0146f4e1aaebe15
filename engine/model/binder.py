"""Binding of the parameters and buffers of modules to tensors that we own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


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

    def unbind(self) -> None:
        """Put tensors without memory in the place of the tensors, so that theirs can be freed."""
        for holder, name in self._holders.values():
            holder[name] = torch.empty_like(holder[name], device="meta")

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


@contextmanager
def without_weights(module: nn.Module) -> Iterator[None]:
    """Hide the parameters of a module, which may have their values: a draft's layers have."""
    own = dict(module._parameters)
    for name, value in own.items():
        if value is not None:
            hidden = torch.empty_like(value, device="meta")
            module._parameters[name] = nn.Parameter(hidden, requires_grad=False)
    try:
        yield
    finally:
        module._parameters.update(own)
