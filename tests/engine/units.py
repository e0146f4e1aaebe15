"""Unit readers for tests, whose weights follow from a unit's index, with gates and faults."""

import random
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from engine.weights.layout import PAGE_BYTES, UnitLayout, UnitReader, lay_out


def layout(index: int, rows: int) -> UnitLayout:
    """Return the layout of a few tensors of different dtypes and shapes; units differ in size."""
    return lay_out(
        f"layer.{index}",
        {
            "attn.weight": (torch.bfloat16, (rows + index, 8)),
            "norm.weight": (torch.float32, (rows,)),
            "codes": (torch.uint8, (3, index + 1, 5)),
        },
    )


class NumberedUnits(UnitReader):
    """A reader of units whose tensors are those of `expected`.

    A read of unit i waits for `gates[i]` if there is one, and raises the first of `faults[i]` if
    there is any. Each read is delayed by a random time of up to `jitter` seconds.
    """

    def __init__(self, count: int, rows: int = 64, jitter: float = 0.0) -> None:
        self.layouts: Sequence[UnitLayout] = [layout(index, rows) for index in range(count)]
        self.faults: dict[int, list[BaseException]] = {}
        self.gates: dict[int, threading.Semaphore] = {}
        self.reads: Counter[int] = Counter()
        self.begun = threading.Semaphore(0)
        self.jitter = jitter
        self._expected: dict[int, dict[str, Tensor]] = {}

    def read(self, index: int, buffer: Tensor) -> None:
        assert buffer.dtype == torch.uint8
        assert buffer.data_ptr() % 4096 == 0
        assert len(buffer) >= self.layouts[index].nbytes
        self.reads[index] += 1
        self.begun.release()
        if index in self.gates:
            assert self.gates[index].acquire(timeout=30), f"the gate of {index} was not opened"
        time.sleep(random.uniform(0, self.jitter))
        if self.faults.get(index):
            buffer.fill_(255)  # the bytes of a failed read must not be used
            raise self.faults[index].pop(0)
        views = self.layouts[index].views(buffer)
        for name, tensor in self.expected(index).items():
            views[name].copy_(tensor)

    def expected(self, index: int) -> dict[str, Tensor]:
        if index not in self._expected:
            bits = torch.Generator().manual_seed(index)
            self._expected[index] = {
                field.name: torch.randint(0, 100, field.shape, generator=bits).to(field.dtype)
                for field in self.layouts[index].fields
            }
        return self._expected[index]

    def check(self, index: int, weights: Mapping[str, Tensor]) -> None:
        """Check that the weights are exactly those of unit `index`."""
        expected = self.expected(index)
        assert list(weights) == list(expected)
        for name, tensor in expected.items():
            assert weights[name].dtype == tensor.dtype
            assert weights[name].shape == tensor.shape
            assert torch.equal(weights[name].cpu(), tensor), f"unit {index}, {name}"


class PiecedUnits(NumberedUnits):
    """Numbered units that several threads read in pieces of one page.

    `piece_gates` and `piece_faults` belong to a piece: (unit, number of the piece).
    """

    def __init__(self, count: int, rows: int = 1000, jitter: float = 0.0) -> None:
        super().__init__(count, rows, jitter)
        self.piece_gates: dict[tuple[int, int], threading.Semaphore] = {}
        self.piece_faults: dict[tuple[int, int], list[BaseException]] = {}
        self.order: list[tuple[int, int]] = []  # the pieces, in the order in which reads began
        self.under_way = Counter[int]()
        self.prepared: list[int] = []

    def pieces(self, index: int) -> Sequence[range]:
        firsts = range(0, self.layouts[index].nbytes, PAGE_BYTES)
        return [range(first, first + PAGE_BYTES) for first in firsts]

    def read_piece(self, index: int, piece: range, memory: Tensor) -> None:
        assert memory.data_ptr() % PAGE_BYTES == 0
        assert len(memory) == len(piece)
        place = (index, piece.start // PAGE_BYTES)
        self.order.append(place)
        self.begun.release()
        self.under_way[index] += 1
        try:
            if gate := self.piece_gates.get(place):
                assert gate.acquire(timeout=30), f"the gate of {place} was not opened"
            time.sleep(random.uniform(0, self.jitter))
            if faults := self.piece_faults.get(place):  # the test may clear them at any time
                memory.fill_(255)
                raise faults.pop(0)
            memory.copy_(self._buffer(index)[piece.start : piece.stop])
        finally:
            self.under_way[index] -= 1

    def prepare(self, indices: Sequence[int]) -> None:
        self.prepared = list(indices)

    def _buffer(self, index: int) -> Tensor:
        buffer = torch.zeros(self.layouts[index].nbytes, dtype=torch.uint8)
        for name, view in self.layouts[index].views(buffer).items():
            view.copy_(self.expected(index)[name])
        return buffer
