"""What a loaded model may take: shares of what there is, and the limits that are set."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from benchmarks.memory_group import NoMemoryGroup, memory_group
from engine import cgroups as own_cgroups
from engine.moves import LimitMemory
from engine.planning import machine, room
from engine.planning.memory import Memory
from engine.planning.plan import Plan, make_plan
from engine.planning.replan import Room, planned_bytes
from engine.planning.room import HOLD, TAKE, Available, read_available, room_in
from engine.spec import MemorySpec, ModelSpec, TargetSpec
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.device import OwnMemory
from tests.engine.planning.test_plan import DEMAND, MIB

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


def planned(*, own: bool) -> Plan:
    """Return a plan that takes 60 bytes on the device and 100 of host memory."""
    memory = Memory(0, 0, own, device_runtime=9 if own else 0, host_runtime=100, code=7)
    spec = ModelSpec("m", TargetSpec("m"))
    plan = make_plan(spec, DEMAND, Memory(1 << 40, 1 << 40, own))
    on_device, on_host = planned_bytes(plan)
    return replace(
        plan,
        memory=memory,
        kv_bytes=plan.kv_bytes - on_device + 60,
        host_kv_bytes=plan.host_kv_bytes - on_host + 100,
    )


@pytest.mark.parametrize(
    ("resident", "ram"),
    [
        (100 + 40, 500 + 40 - 7),  # it holds less than is planned
        (100 + 160 + 7, 500 + 160),  # all of it, and the code that was compiled
        (100 + 900, 500 + 160),  # more: what comes from elsewhere is not the plan's
    ],
)
def test_what_the_model_holds_of_the_plan_is_available(
    monkeypatch: pytest.MonkeyPatch, resident: int, ram: int
) -> None:
    monkeypatch.setattr(room, "free_ram", lambda: 500)
    monkeypatch.setattr(room, "resident_bytes", lambda: resident)
    assert read_available(CpuDevice(), planned(own=False)) == Available(None, ram)


@pytest.mark.parametrize(("held", "device"), [(30, 70), (60, 100), (90, 100)])
def test_a_device_with_its_own_memory_has_room_of_its_own(
    monkeypatch: pytest.MonkeyPatch, held: int, device: int
) -> None:
    monkeypatch.setattr(room, "free_ram", lambda: 500)
    monkeypatch.setattr(room, "resident_bytes", lambda: 1000)
    card = CpuDevice()
    monkeypatch.setattr(card, "own_memory", lambda: OwnMemory(free=40, runtime=9, held=held))
    assert read_available(card, planned(own=True)) == Available(device, 500 + 100)


def test_memory_high_is_a_limit_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(own_cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(own_cgroups, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "own").write_text("0::/group\n")
    group = tmp_path / "group"
    group.mkdir()
    (group / "memory.stat").write_text("anon 100\nfile 5\n")
    (group / "memory.max").write_text("1000\n")
    assert machine.free_ram() == 900
    (group / "memory.high").write_text("300\n")
    assert machine.free_ram() == 200


def test_loading_may_take_more_for_a_while_than_is_held() -> None:
    draft = replace(DEMAND.draft, making_bytes=500 * MIB, weight_bytes=1)
    demand = replace(DEMAND, draft=draft)
    spec = ModelSpec("m", TargetSpec("m"))
    room = 1000 * MIB
    memory = Memory(int(0.8 * room), int(0.9 * room), has_own_memory=False)
    less = make_plan(spec, demand, memory)
    more = make_plan(spec, demand, replace(memory, loading=int(0.97 * room)))
    assert 0.9 * room < more.device_bytes + more.making_bytes <= 0.97 * room
    assert less.device_bytes + less.making_bytes <= 0.9 * room


@pytest.mark.slow
def test_the_limit_of_a_real_group_is_seen_when_it_is_lowered() -> None:
    script = (
        "from engine.planning.machine import free_ram\n"
        "import sys\n"
        "for _ in sys.stdin: print(free_ram(), flush=True)\n"
    )
    with ExitStack() as stack:
        try:
            group = stack.enter_context(memory_group("understudy-room"))
        except NoMemoryGroup as error:
            pytest.skip(str(error))
        child = stack.enter_context(
            Popen([sys.executable, "-c", script], stdin=PIPE, stdout=PIPE, text=True)
        )
        stack.callback(child.kill)
        assert child.stdin is not None and child.stdout is not None
        found = []
        for limit in (3000 * MIB, 2000 * MIB):
            group.limit(limit)
            (group.path / "cgroup.procs").write_text(str(child.pid))
            child.stdin.write("\n")
            child.stdin.flush()
            found.append(int(child.stdout.readline()))
        assert abs(found[0] - found[1] - 1000 * MIB) < 50 * MIB
