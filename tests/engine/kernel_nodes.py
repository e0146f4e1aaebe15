"""The number of kernels that a draft step launches on a GPU, counted on a CPU."""

# mypy: disallow-untyped-calls=False
# torch declares no types for dispatch modes.

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.drafting.model.cuda_graphs import Bucket, PaddedStep
from engine.drafting.model.draft_model import DraftModel
from engine.drafting.model.fused.operations import Operations

# Functions without a kernel, beside those that return views.
_WITHOUT = ("empty", "new_empty", "empty_like", "empty_strided", "_unsafe_view", "lift_fresh")


class KernelNodes(TorchDispatchMode):
    """Counts calls of torch's functions that compute something, and launches that are added."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self._is_paused = False

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count within the block."""
        self._is_paused = True
        try:
            yield
        finally:
            self._is_paused = False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), named: Any = None
    ) -> Any:
        with self:  # functions of other functions arrive whole in the mode for inference
            result = function.decompose(*args, **(named or {}))
        if result is not NotImplemented:
            return result
        returned = [value.alias_info for value in function._schema.returns]
        is_view = any(alias is not None and not alias.is_write for alias in returned)
        name = function.name().removeprefix("aten::").partition(".")[0]
        if not self._is_paused and not is_view and name not in _WITHOUT:
            self.counts[name] += 1
        return function(*args, **(named or {}))


class CountedOperations:
    """Operations by functions of torch that count as the kernels of other operations."""

    def __init__(self, operations: Operations, launches: Mapping[str, int]) -> None:
        self.nodes = KernelNodes()
        for name, count in launches.items():
            setattr(self, name, self._counting(name, getattr(operations, name), count))

    def _counting(
        self, name: str, operation: Callable[..., Tensor], count: int
    ) -> Callable[..., Tensor]:
        def run(*args: Any) -> Tensor:
            self.nodes.counts[name] += count
            with self.nodes.paused():
                return operation(*args)

        return run


def padded_step(model: DraftModel, rows: int) -> PaddedStep:
    """Return a step of a draft model whose rows see everything."""
    step = PaddedStep(model.decoder, model.caches.cache.pool, Bucket(rows, 256))
    step._mask.fill_(True)
    return step
