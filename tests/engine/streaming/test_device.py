"""Tests of devices: how one is found by its name, and that one file adds another one."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

import engine.streaming
from engine.spec import Tier
from engine.streaming import link
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.device import Device, choose_device
from engine.streaming.ring import LayerStream
from tests.engine.units import NumberedUnits
from tests.examples import added, example_in, write_files


@pytest.fixture
def documented(tmp_path: Path) -> Iterator[Device]:
    """Yield the device of the example in the docstring of `engine.streaming.link`."""
    write_files(tmp_path, {"engine/streaming/xpu_link.py": example_in(link.__doc__)})
    with added(tmp_path, engine.streaming):
        yield choose_device("xpu:0")


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_the_documented_device_streams_every_unit(documented: Device, slots: int) -> None:
    assert type(documented).__name__ == "MemcpyDevice"
    units = NumberedUnits(6)
    tiers: list[Tier] = ["resident", "ram", "disk", "ram", "disk", "resident"]
    with closing(LayerStream(units, tiers, device=documented, slots=slots)) as stream:
        assert stream.measure_link() > 0
        for _ in range(4):  # what was loaded ahead before the measurement ended is not counted
            for index in range(6):
                with stream.unit(index) as weights:
                    units.check(index, weights)
        ram, disk = ([1, 3], [2, 4])
        assert stream.stats.ram.bytes >= 3 * sum(units.layouts[i].nbytes for i in ram)
        assert stream.stats.disk.bytes >= 3 * sum(units.layouts[i].nbytes for i in disk)


def test_the_documented_device_has_defaults_for_the_rest(documented: Device) -> None:
    assert (documented.kind, str(documented)) == ("xpu", "xpu:0")
    assert not documented.is_asynchronous and not documented.has_own_memory
    assert documented.capture() is None
    assert documented.pin(torch.zeros(1)) is None
    with documented.side_stream().during_pass():
        documented.use_compute_stream()


def test_the_cpu_is_chosen_by_its_name() -> None:
    assert isinstance(choose_device("cpu"), CpuDevice)
    assert isinstance(choose_device("cpu", simulate_gbps=1.0), CpuDevice)


@pytest.mark.parametrize(("held", "runtime"), [(300, 300), (5000, 1024)])
def test_memory_of_other_programs_is_not_counted_as_the_runtimes(
    monkeypatch: pytest.MonkeyPatch, held: int, runtime: int
) -> None:
    """The runtime is never larger than a CUDA context: the rest is used by other programs."""
    mib, free, cached = 1 << 20, 2000, 50
    monkeypatch.setattr(
        torch.cuda, "mem_get_info", lambda device: (free * mib, (free + held + cached) * mib)
    )
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: cached * mib)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    device = CudaDevice(torch.device("cuda:0"))
    assert device.has_own_memory
    assert device.own_memory().free == free * mib
    assert device.own_memory().runtime == runtime * mib


@pytest.mark.parametrize(
    ("capability", "kib"), [((8, 0), 8320), ((8, 9), 8320), ((9, 0), 32768), ((12, 0), 32768)]
)
def test_the_workspace_of_a_stream_depends_on_the_card(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], kib: int
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 1))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert CudaDevice(torch.device("cuda:0")).own_memory().stream_workspace == kib << 10
