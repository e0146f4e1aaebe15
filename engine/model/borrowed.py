"""Weights that a layer borrows while it runs.

The parts of a large layer are borrowed one by one, each when the layer first reads one of its
tensors, so a layer begins before all of it has arrived. All are given back when the layer has run
over all tiles of the pass.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from engine.model.attention import Batch
from engine.model.binder import Binder
from engine.streaming.ring import OnWait


class PassCancelled(Exception):
    """The exception that ends a pass inside or between layers when all its clients have left."""


class Weights(Protocol):
    """A lender of weights to a decoder: the units of its layers in order, then the head."""

    def unit(
        self, index: int, on_wait: OnWait | None = None
    ) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Return a context manager that lends the tensors of a unit, by name.

        The parts of a layer are borrowed inside each other, all other units alone. `on_wait` may be
        called while the weights are being copied.
        """


class BorrowedParts:
    """The units that hold a layer's own tensors, which are borrowed in order and bound to it.

    Args:
        layer: the module that the tensors belong to.
        units: one unit, or the parts of the layer.
        weights: lends them.
    """

    def __init__(self, layer: nn.Module, units: range, weights: Weights) -> None:
        self._units = units
        self._weights = weights
        self._stack = ExitStack()  # returns the units
        self._batch: Batch | None = None  # while the layer runs
        self._num_borrowed = 0
        self._absent: dict[int, dict[str, Tensor]] = {}  # on `meta`, for each part but the first
        if len(units) > 1:
            for module in layer.modules():
                late = _LateParameters(module._parameters, self._borrow_next)
                module.__dict__["_parameters"] = late
        self._binder = Binder(layer)

    @contextmanager
    def borrow(self, batch: Batch) -> Iterator[None]:
        """Borrow the first unit for the block, in which the layer runs, and others when needed.

        All have been borrowed at the end of the block, because units are requested in order.
        Raises `PassCancelled`, also in the block, if all clients have left.
        """
        with ExitStack() as stack:
            self._stack, self._batch = stack, batch
            try:
                self._borrow_next()
                yield
                while self._borrow_next():
                    pass
            finally:
                self._batch, self._num_borrowed = None, 0

    def unbind(self) -> None:
        """Forget the tensors that were borrowed last, while the layer does not run."""
        self._binder.unbind()

    def _borrow_next(self) -> bool:
        """Borrow the next unit and bind its tensors. Return False if there is none."""
        batch, number = self._batch, self._num_borrowed
        if batch is None or number == len(self._units):
            return False
        lent = self._weights.unit(self._units[number], batch.on_wait)
        views = self._stack.enter_context(lent)
        self._num_borrowed += 1
        if not batch.has_live_rows():
            raise PassCancelled
        self._binder.bind(views)
        if number:
            if number not in self._absent:
                self._absent[number] = {
                    name: torch.empty_like(view, device="meta") for name, view in views.items()
                }
            self._stack.callback(self._binder.bind, self._absent[number])
        return True


class _LateParameters(dict[str, Any]):
    """The parameters of a module. Reading one that lies on `meta` borrows units until it is bound.

    Modules read their parameters as attributes, which torch looks up here, or iterate over them.
    """

    def __init__(self, parameters: Mapping[str, Any], borrow_next: Callable[[], bool]) -> None:
        super().__init__(parameters)
        self._borrow_next = borrow_next

    def __getitem__(self, name: str) -> Any:
        found = super().__getitem__(name)
        while found is not None and found.is_meta and self._borrow_next():
            found = super().__getitem__(name)
        return found

    def items(self) -> Any:
        while self._borrow_next():
            pass
        return super().items()
