"""Units that move between two passes: from the device to RAM and disk, and back."""

import gc
import random
import weakref
from collections.abc import Sequence
from contextlib import closing
from typing import get_args

import pytest

from engine.errors import ModelError
from engine.spec import Tier
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.ring import LayerStream
from tests.engine.streaming.test_ring import CPU, TIERS, opened, walk, weight_threads
from tests.engine.units import NumberedUnits


def move(stream: LayerStream, tiers: Sequence[Tier], slots: int = 2) -> None:
    """Move units to these tiers between two passes."""
    moved = [unit for unit, own in enumerate(stream.tiers) if own != tiers[unit]]
    stream.pause()
    stream.free(moved)
    kinds = {tier: [unit for unit in moved if tiers[unit] == tier] for tier in get_args(Tier)}
    stream.store(kinds["resident"], kinds["ram"])
    stream.resume(slots)
    assert stream.tiers == tuple(tiers)


@pytest.mark.parametrize("seed", range(12))
def test_weights_are_right_after_any_move(seed: int) -> None:
    chance = random.Random(seed)
    count = chance.randint(1, 6)
    units = NumberedUnits(count)

    def places() -> list[Tier]:
        return chance.choices(TIERS, k=count)

    with opened(units, places(), chance.randint(1, 3)) as stream:
        for _ in range(4):
            walk(stream, units)
            move(stream, places(), chance.randint(1, 3))
            walk(stream, units)
            for index in range(chance.randrange(count)):  # a pass that ends early
                with stream.unit(index) as weights:
                    units.check(index, weights)
            if chance.random() < 0.5:
                stream.seek()
            else:
                move(stream, places())
    assert not weight_threads()


@pytest.mark.parametrize("tier", ["resident", "ram"])
def test_the_memory_of_units_that_leave_is_freed(tier: Tier) -> None:
    units = NumberedUnits(3)
    with opened(units, [tier] * 3) as stream:
        walk(stream, units)
        store = stream._store
        memory = store.resident if tier == "resident" else store.waiting
        kept = [weakref.ref(memory[unit]) for unit in range(3)]
        slots = [weakref.ref(slot) for free in stream._free.values() for slot in free]
        move(stream, ["disk", tier, "disk"])
        gc.collect()
        assert [own() is None for own in kept] == [True, False, True]
        assert all(own() is None for own in slots)
        walk(stream, units)


def test_units_that_cannot_be_read_stay_on_disk() -> None:
    units = NumberedUnits(4)
    with opened(units, ["disk"] * 4) as stream:
        walk(stream, units)
        stream.pause()
        units.faults[1] = [OSError("the disk failed")]
        with pytest.raises(ModelError, match=r"layer\.1: its weights could not be read"):
            stream.store([0, 1], [2])
        assert set(stream.tiers) == {"disk"}
        units.faults[2] = [OSError("the disk failed")]
        with pytest.raises(ModelError, match=r"layer\.2: its weights could not be read"):
            stream.store([0, 1], [2])
        assert stream.tiers == ("resident", "resident", "disk", "disk")
        stream.resume(2)
        walk(stream, units)


def test_a_move_waits_for_transfers_and_work_that_use_the_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    units = NumberedUnits(5, jitter=0.003)
    device, waited = CpuDevice(), []
    monkeypatch.setattr(device, "synchronize", lambda: waited.append(True))
    with closing(LayerStream(units, ["disk"] * 5, device=device, slots=3)) as stream:
        for number in range(6):
            walk(stream, units)
            move(stream, [random.choice(TIERS) for _ in range(5)])
            assert len(waited) == number + 1
        walk(stream, units)


def test_pause_and_close_may_follow_each_other() -> None:
    units = NumberedUnits(2)
    stream = LayerStream(units, ["ram", "disk"], device=CPU, slots=2)
    stream.pause()
    stream.close()
    stream.close()
    assert not weight_threads()
