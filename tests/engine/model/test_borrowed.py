"""Tests of layers that borrow their parts while they run, with modules of any kind."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from threading import Event
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from engine.model.attention import Batch
from engine.model.borrowed import BorrowedParts, PassCancelled
from engine.streaming.ring import OnWait

PARTS = [
    ("norm", "first.bias", "second.bias"),
    ("first.weight",),
    ("second.weight",),
    ("spare.weight",),
]


class Layer(nn.Module):
    """A layer that reads its weights in the order that a test wants."""

    def __init__(self) -> None:
        super().__init__()
        with torch.device("meta"):
            self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
            self.spare = nn.Linear(2, 2, bias=False)
            self.norm = nn.Parameter(torch.empty(2))

    def value(self, path: str) -> float:
        """Return the value of a parameter, all of whose elements are equal."""
        owner, _, name = path.rpartition(".")
        return float(getattr(self.get_submodule(owner), name).mean())


class Lender:
    """Lends tensors whose values are the number of their unit, counted through all passes."""

    def __init__(self) -> None:
        self.lent: list[int] = []
        self.open: list[int] = []
        shapes = {name: own.shape for name, own in Layer().named_parameters()}
        self.shapes = [{name: shapes[name] for name in names} for names in PARTS]

    @contextmanager
    def unit(self, index: int, on_wait: OnWait | None = None) -> Iterator[Mapping[str, Tensor]]:
        self.lent.append(index)
        self.open.append(index)
        number = float(len(self.lent))
        shapes = self.shapes[index - 5]
        try:
            yield {name: torch.full(shape, number) for name, shape in shapes.items()}
        finally:
            self.open.remove(index)


def make() -> tuple[Layer, Lender, BorrowedParts, Batch, Event]:
    layer, lender, left = Layer(), Lender(), Event()
    parts = BorrowedParts(layer, range(5, 9), lender)
    batch: Any = SimpleNamespace(on_wait=None, has_live_rows=lambda: not left.is_set())
    return layer, lender, parts, cast(Batch, batch), left


@pytest.mark.parametrize(
    ("reads", "lent"),
    [
        ([], [[5]]),
        (["norm"], [[5], [5]]),
        (["first.weight"], [[5], [5, 6]]),
        (["second.weight", "first.weight"], [[5], [5, 6, 7], [5, 6, 7]]),
        (["first.bias", "first.weight", "first.weight"], [[5], [5], [5, 6], [5, 6]]),
        (["spare.weight"], [[5], [5, 6, 7, 8]]),
    ],
)
def test_a_part_is_borrowed_at_the_first_read_and_all_are_at_the_end(
    reads: list[str], lent: list[list[int]]
) -> None:
    layer, lender, parts, batch, _ = make()
    for number in range(2):
        found = []
        with parts.borrow(batch):
            found.append([*lender.open])
            for path in reads:
                part = next(own for own, names in enumerate(PARTS) if path in names)
                assert layer.value(path) == 4 * number + part + 1, "the values of this pass"
                found.append([*lender.open])
        assert found == lent
        assert lender.open == [] and lender.lent == [5, 6, 7, 8] * (number + 1)
    assert layer.second.weight.is_meta and not layer.norm.is_meta


def test_iterating_over_parameters_borrows_all() -> None:
    layer, lender, parts, batch, _ = make()
    with parts.borrow(batch):
        assert not any(own.is_meta for own in layer.parameters())
        assert lender.open == [5, 6, 7, 8]
    assert any(own.is_meta for own in layer.parameters()), "outside of a pass nothing is borrowed"


def test_an_error_in_the_layer_returns_what_was_borrowed() -> None:
    layer, lender, parts, batch, _ = make()

    def fail() -> None:
        with parts.borrow(batch):
            layer.value("first.weight")
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        fail()
    assert lender.lent == [5, 6] and lender.open == [], "no further units are requested"
    with parts.borrow(batch):
        assert layer.value("second.weight") == 5.0


def test_a_pass_is_cancelled_when_a_part_has_arrived_and_all_clients_have_left() -> None:
    layer, lender, parts, batch, left = make()

    def run() -> None:
        with parts.borrow(batch):
            layer.value("norm")
            left.set()
            layer.value("second.weight")

    with pytest.raises(PassCancelled):
        run()
    assert lender.lent == [5, 6] and lender.open == []
    left.clear()
    with parts.borrow(batch):
        assert layer.value("second.weight") == 5.0


def test_a_layer_of_one_unit_keeps_its_tensors() -> None:
    layer, lender = Layer(), Lender()
    lender.shapes[0] = {name: own.shape for name, own in layer.named_parameters()}
    batch: Any = SimpleNamespace(on_wait=None, has_live_rows=lambda: True)
    with BorrowedParts(layer, range(5, 6), lender).borrow(batch):
        assert layer.value("second.weight") == 1.0
    assert type(layer._parameters) is dict and layer.value("second.weight") == 1.0
