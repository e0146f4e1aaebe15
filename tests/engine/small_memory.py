"""An allocator with too little memory: a mode in which chosen allocations of a device fail."""

# mypy: disallow-untyped-calls=False
# torch declares no types for dispatch modes.

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.sampling.logit_rules import TokenCounts

Fails = Callable[[int, int], bool]  # gets the number of an allocation and its bytes


class SmallMemory(TorchDispatchMode):
    """A mode in which allocations fail where `fails` says so, as on a full device."""

    def __init__(self) -> None:
        super().__init__()
        self.fails: Fails = lambda number, nbytes: False
        self.num_allocations = 0
        self.num_failed = 0
        self.is_off = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.is_off:
            return out
        given = {own.untyped_storage().data_ptr() for own in _tensors((args, kwargs))}
        for tensor in _tensors(out):
            if tensor.untyped_storage().data_ptr() not in given:
                self._allocate(tensor.untyped_storage().nbytes())
        return out

    def _allocate(self, nbytes: int) -> None:
        self.num_allocations += 1
        if self.fails(self.num_allocations, nbytes):
            self.num_failed += 1
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {nbytes} bytes")

    def start(self, fails: Fails) -> None:
        """Let allocations fail from now on where `fails` says so; count them anew."""
        self.fails, self.num_allocations, self.num_failed = fails, 0, 0


@contextmanager
def small_memory(patch: pytest.MonkeyPatch) -> Iterator[SmallMemory]:
    """Enter a block in which no allocation fails until `start` is called."""
    mode, add = SmallMemory(), TokenCounts.add

    def add_in_host_memory(counts: TokenCounts, token: int) -> None:
        mode.is_off = True  # the table of counts is not on the device
        add(counts, token)
        mode.is_off = False

    patch.setattr(TokenCounts, "add", add_in_host_memory)
    with mode:
        yield mode


def _tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return []
    return [own for value in values for own in _tensors(value)]
