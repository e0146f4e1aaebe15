"""What would make the host wait for a CUDA device, counted on the pretended one.

The host waits where it reads a result: a number, a list, or how many values meet a condition. It
also waits where values of the host go to the device otherwise than by `engine.transfer`: in the
arguments `device` of torch's functions, and in lists that index a tensor.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor

import engine
from tests.engine.order.pretended_cuda import PretendedCuda

_SOURCES = str(next(iter(engine.__path__)))
_NUMBERS = ("_local_scalar_dense", "item", "is_nonzero", "equal", "allclose")
_COUNTED = ("nonzero", "argwhere", "masked_select", "bincount", "repeat_interleave")
_UNIQUE = ("unique", "_unique2", "unique_consecutive")
_READS = frozenset((*_NUMBERS, *_COUNTED, *_UNIQUE))
_INDEXED = frozenset(("index", "index_put", "index_put_", "_index_put_impl_"))


class Waits:
    """The waits of the engine's code, by the place in the engine that waits."""

    def __init__(self, cuda: PretendedCuda) -> None:
        self.places: Counter[str] = Counter()
        self._cuda = cuda
        self._is_counting = False
        self.is_on_host = False  # whether a function runs that leaves values on the host

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Count within the block, and yield the counts of this block."""
        before, self.places = self.places, Counter()
        was_counting, self._is_counting = self._is_counting, True
        own = self.places
        try:
            yield own
        finally:
            self._is_counting = was_counting
            self.places = before
            before.update(own)  # blocks may be nested

    def note(self, what: str) -> None:
        """Count a wait of the engine's innermost function."""
        if self._is_counting and (place := _place()):
            self.places[f"{place}: {what}"] += 1

    def ran(self, func: Any, args: Any) -> None:
        """Look at an operation before it is recorded."""
        name = func.overloadpacket.__name__
        if name in _READS and args and isinstance(args[0], Tensor) and self._is_on_device(args[0]):
            self.note(name)
        # A single number is an argument of a kernel.
        if name == "lift_fresh" and not self.is_on_host and args[0].dim():
            self.note("values of a list")
        if name in _INDEXED and self._is_on_device(args[0]):
            for own in args[1]:
                if isinstance(own, Tensor) and own.dtype == torch.bool:
                    self.note("index by a mask")

    def _is_on_device(self, tensor: Tensor) -> bool:
        return self._cuda.checker.knows(tensor)


def install(patch: pytest.MonkeyPatch, cuda: PretendedCuda) -> Waits:
    """Count the waits of what runs on the pretended device."""
    waits = Waits(cuda)
    own_ran, own_tolist = cuda.ran, Tensor.tolist

    def ran(func: Any, args: Any, kwargs: Any, out: Any) -> None:
        waits.ran(func, args)
        own_ran(func, args, kwargs, out)

    def tolist(tensor: Tensor) -> Any:
        if cuda.checker.knows(tensor):
            waits.note("tolist")
        return own_tolist(tensor)

    def made(own: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(*arguments: Any, **named: Any) -> Tensor:
            if named.get("device") is not None:
                waits.note("values with a device")
            waits.is_on_host = True
            try:
                return own(*arguments, **named)
            finally:
                waits.is_on_host = False

        return make

    patch.setattr(cuda, "ran", ran)
    patch.setattr(Tensor, "tolist", tolist)
    for name in ("tensor", "from_numpy"):
        patch.setattr(torch, name, made(getattr(torch, name)))
    return waits


def _place() -> str:
    """Return the innermost function of the engine that is running now, and its file."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith(_SOURCES):
            return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}"
        frame = frame.f_back
    return ""
