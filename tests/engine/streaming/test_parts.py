"""Tests of layers in several parts in the weight stream: their slots, order, and time ahead."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager

import pytest
from hypothesis import given, settings, strategies as st

from engine.errors import ModelError
from engine.spec import Tier
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.ring import LayerStream
from engine.streaming.slots import SlotKind, ring_slots
from engine.weights.layout import LayerUnits
from tests.engine.units import NumberedUnits

WHOLE = (LayerUnits(0), LayerUnits(1), LayerUnits(2))
PARTS = (LayerUnits(0, num_parts=3), LayerUnits(3, num_parts=3))  # the head is unit 6
SLICED = (LayerUnits(0, num_parts=2), LayerUnits(2, "experts", (range(4), range(4, 8))))


@pytest.mark.parametrize(
    ("layers", "sizes", "resident", "slots", "expected"),
    [
        (WHOLE, [5, 6, 7, 2], set(), 3, {0: (3, 7)}),
        (WHOLE, [5, 6, 7, 9], set(), 3, {0: (3, 9)}),
        (WHOLE, [5, 6, 7, 9], {2, 3}, 2, {0: (2, 6)}),
        (WHOLE, [5, 6, 7, 9], {0, 1, 2}, 3, {0: (3, 9)}),
        (WHOLE, [5, 6, 7, 9], {0, 1, 2, 3}, 3, {}),
        (PARTS, [1, 5, 4, 2, 3, 6, 9], {6}, 2, {0: (2, 2), 1: (1, 5), 2: (1, 6)}),
        (PARTS, [1, 5, 4, 2, 3, 6, 9], {6}, 3, {0: (2, 2), 1: (2, 5), 2: (1, 6)}),
        (PARTS, [1, 5, 4, 2, 3, 6, 9], {3, 4, 5}, 4, {0: (2, 9), 1: (2, 5), 2: (2, 4)}),
        (PARTS, [1, 5, 4, 2, 3, 6, 9], {0, 1, 2, 6}, 5, {0: (3, 2), 1: (2, 3), 2: (2, 6)}),
        (SLICED, [1, 2, 3, 7, 8, 4], set(), 3, {0: (3, 8), 1: (2, 2)}),
    ],
)
def test_the_ring_has_room_for_a_layer_and_for_units_ahead(
    layers: Sequence[LayerUnits],
    sizes: list[int],
    resident: set[int],
    slots: int,
    expected: dict[int, tuple[int, int]],
) -> None:
    streamed = set(range(len(sizes))) - resident
    found = ring_slots(sizes, layers, streamed, slots)
    assert found == {place: SlotKind(*kind) for place, kind in expected.items()}


@contextmanager
def opened(
    units: NumberedUnits,
    tiers: Sequence[Tier],
    slots: int,
    layers: Sequence[LayerUnits] = PARTS,
    gbps: float | None = None,
) -> Iterator[LayerStream]:
    device = CpuDevice(simulate_gbps=gbps)
    with closing(LayerStream(units, tiers, device=device, slots=slots, layers=layers)) as stream:
        yield stream


def walk(
    stream: LayerStream, units: NumberedUnits, layers: Sequence[LayerUnits], leave: int | None
) -> None:
    """Run a pass. All parts of a layer hold their weights until it ends; leave in unit `leave`."""
    for group in [*(layer.parts for layer in layers), [layers[-1].units.stop]]:
        with ExitStack() as stack:
            lent = []
            for unit in group:
                lent.append((unit, stack.enter_context(stream.unit(unit))))
                for borrowed in lent:
                    units.check(*borrowed)
                if unit == leave:
                    return


@settings(max_examples=40)
@given(
    num_parts=st.lists(st.integers(1, 4), min_size=1, max_size=4),
    seed=st.integers(0, 100),
    slots=st.integers(1, 6),
    passes=st.lists(st.none() | st.integers(0, 12), max_size=3),
    gbps=st.sampled_from([None, 0.05]),
)
def test_weights_of_parts_are_right_in_all_tiers_also_after_passes_that_end_early(
    num_parts: list[int], seed: int, slots: int, passes: list[int | None], gbps: float | None
) -> None:
    layers: list[LayerUnits] = []
    for count in num_parts:
        layers.append(LayerUnits(layers[-1].units.stop if layers else 0, num_parts=count))
    chance = random.Random(seed)
    tiers: list[Tier] = []
    for count in [*num_parts, 1]:
        tiers += [chance.choice(("resident", "ram", "disk"))] * count
    units = NumberedUnits(len(tiers))
    with opened(units, tiers, slots, layers, gbps) as stream:
        for leave in [*passes, None, None]:
            walk(stream, units, layers, leave)
            stream.seek()
    assert not [own.name for own in threading.enumerate() if own.name.startswith("weights-")]


def test_slots_of_a_layer_are_filled_when_it_ends_and_not_before() -> None:
    units = NumberedUnits(7)
    with opened(units, ["disk"] * 7, slots=3) as stream:
        for _ in range(5):  # a layer, and two parts of the next one
            assert units.begun.acquire(timeout=30)
        with ExitStack() as stack:
            for unit in range(3):
                stack.enter_context(stream.unit(unit))
                assert not units.begun.acquire(blocking=False)
        # The last part of the second layer, then the head, which shares the slots of first parts.
        for _ in range(2):
            assert units.begun.acquire(timeout=30)
        assert [units.reads[unit] for unit in range(7)] == [1] * 7


def test_parts_are_requested_inside_each_other_and_in_order() -> None:
    with opened(NumberedUnits(7), ["ram"] * 7, slots=2) as stream:
        with stream.unit(0):
            with pytest.raises(AssertionError, match="unit 2 was requested, but unit 1 is next"):
                stream.unit(2).__enter__()
            with stream.unit(1), stream.unit(2):
                with pytest.raises(AssertionError, match="inside another unit's block"):
                    stream.unit(3).__enter__()
                with pytest.raises(AssertionError, match="seek inside"):
                    stream.seek()
        with stream.unit(3):
            pass


def test_a_part_that_cannot_be_read_fails_its_layer_and_the_next_pass_works() -> None:
    units = NumberedUnits(7)
    units.faults[4] = [OSError("broken")]
    with opened(units, ["disk"] * 7, slots=3) as stream:
        with pytest.raises(ModelError, match=r"layer\.4: its weights could not be read"):
            walk(stream, units, PARTS, None)
        stream.seek()
        for _ in range(2):
            walk(stream, units, PARTS, None)


def test_time_for_other_work_leaves_time_to_compute_the_rest_of_the_layer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No slot is free before all parts of a layer have been computed."""
    asked: list[int] = []

    def none_left(now: float, due: object, later: object, compute: object, units: int) -> float:
        asked.append(units)
        return 0.0

    monkeypatch.setattr("engine.streaming.ring.spare_seconds", none_left)
    units = NumberedUnits(7)
    units.gates = {unit: threading.Semaphore(0) for unit in range(7)}
    with opened(units, ["disk"] * 7, slots=3) as stream:
        with ExitStack() as stack:
            for unit in range(3):

                def open_gate(seconds: float, unit: int = unit) -> bool:
                    units.gates[unit].release()
                    return False

                stack.enter_context(stream.unit(unit, open_gate))
        for gate in units.gates.values():
            gate.release()
    assert asked == [3, 2, 1]
