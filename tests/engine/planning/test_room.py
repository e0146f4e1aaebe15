"""What a loaded model may take: shares of what there is, and the limits that are set."""

from pathlib import Path

import pytest

from engine.moves import LimitMemory
from engine.planning import machine, room
from engine.planning.plan import Memory
from engine.planning.replan import Room
from engine.planning.room import HOLD, TAKE, Available, reader_of, room_in
from engine.spec import MemorySpec
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.device import OwnMemory

NONE = LimitMemory()
GPU, CPU = Available(1000, 2000), Available(None, 2000)


@pytest.mark.parametrize(
    ("available", "spec", "limits", "want"),
    [
        (GPU, MemorySpec(), NONE, Room(950, 1800)),
        (GPU, MemorySpec(device=800, ram=500), NONE, Room(790, 500)),
        (GPU, MemorySpec(device=800), LimitMemory(device=640, ram=1700), Room(630, 1700)),
        (GPU, MemorySpec(device=800), LimitMemory(device=900, ram=1900), Room(790, 1800)),
        (CPU, MemorySpec(), NONE, Room(1600, 1800, 1800)),
        (CPU, MemorySpec(device=1700), NONE, Room(1690, 1800, 1800)),
        (CPU, MemorySpec(), LimitMemory(device=500, ram=10), Room(490, 10, 1800)),
    ],
)
def test_the_room_is_a_share_of_what_there_is_within_the_limits(
    available: Available, spec: MemorySpec, limits: LimitMemory, want: Room
) -> None:
    assert room_in(available, spec, limits, TAKE, runtime=10) == want


@pytest.mark.parametrize("available", [GPU, CPU])
def test_more_may_be_held_than_taken(available: Available) -> None:
    hold, take = (room_in(available, MemorySpec(), NONE, own, 0) for own in (HOLD, TAKE))
    assert hold.device > take.device and hold.ram > take.ram


def test_what_the_model_holds_counts_as_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "free_ram", lambda: 500)
    monkeypatch.setattr(room, "resident_bytes", lambda: 330)
    memory = Memory(0, 0, has_own_memory=False, host_runtime=100, code=7)
    device = CpuDevice()
    assert reader_of(device, memory)() == Available(None, 500 + 230 - 7)
    monkeypatch.setattr(device, "own_memory", lambda: OwnMemory(free=40, runtime=9, held=60))
    assert reader_of(device, memory)() == Available(100, 500 + 230 - 7)


def test_memory_high_is_a_limit_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("0::/group\n")
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.stat").write_text("anon 100\nfile 5\n")
    (group / "memory.max").write_text("1000\n")
    assert machine.free_ram() == 900
    (group / "memory.high").write_text("300\n")
    assert machine.free_ram() == 200
