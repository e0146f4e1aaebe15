"""Loading on a device with memory of its own: what is measured first must not lessen the plan."""

from typing import Any

import pytest

from engine.planning import machine, probe
from engine.planning.memory import Memory
from engine.spec import DraftSpec
from engine.streaming.device import Device
from tests.engine.models import checkpoint, close_all, load
from tests.engine.order.pretended_cuda import PretendedCuda, PretendedDevice, install


def test_memory_is_read_when_that_of_measurements_is_given_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also the memory that only a garbage collection frees."""
    cuda = PretendedCuda()
    install(monkeypatch, cuda)
    held: list[int] = []  # at each return of memory to the driver
    measured: list[int] = []  # at each measurement
    read: list[tuple[int, int]] = []  # measurements and returns before memory is read
    fastest, available = probe.fastest, machine.available_memory

    def measure(*arguments: Any) -> float:
        measured.append(cuda.compute_bytes())
        return fastest(*arguments)

    def give_back(_: Device) -> None:
        held.append(cuda.compute_bytes())

    def read_memory(device: Device, *, compiles: bool) -> Memory:
        found = available(device, compiles=compiles)
        read.append((len(measured), len(held)))
        return found

    monkeypatch.setattr(probe, "fastest", measure)
    monkeypatch.setattr(PretendedDevice, "give_back_freed", give_back)
    monkeypatch.setattr("engine.runtime.load.available_memory", read_memory)
    with cuda.recording():
        load(checkpoint("llama", layers=2), DraftSpec())  # whose passes no other test has timed
        close_all()
    ((before, returns),) = read
    assert before == len(measured) > 3
    assert returns == 1
    assert max(measured) > 0 == held[0]
