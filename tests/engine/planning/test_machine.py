"""The memory that a plan may use: the machine's free memory, and the limits of cgroups."""

from pathlib import Path

import pytest

from engine import cgroups as own_cgroups
from engine.errors import ModelError
from engine.planning import machine
from engine.planning.machine import CPU_DEVICE_SHARE, DEVICE_SHARE, RAM_SHARE, available_memory
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.device import OwnMemory, choose_device

CPU = CpuDevice()
MIB = 1 << 20


@pytest.fixture
def cgroups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of the cgroups of this machine, without any limit."""
    monkeypatch.setattr(own_cgroups, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(own_cgroups, "OWN_CGROUPS", tmp_path / "own")
    (tmp_path / "cgroup").mkdir()
    own(tmp_path / "cgroup", "")
    return tmp_path / "cgroup"


def own(cgroups: Path, text: str) -> None:
    """Set the cgroups that the kernel reports for this process."""
    (cgroups.parent / "own").write_text(text)


def group(folder: Path, *, limit: str | int, used: int = 0, version: int = 2) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    name, key = ("memory.max", "anon") if version == 2 else ("memory.limit_in_bytes", "total_rss")
    (folder / name).write_text(f"{limit}\n")
    (folder / "memory.stat").write_text(f"file {900 * MIB}\n{key} {used}\nother 5\n")


def free() -> int:
    return available_memory(CPU).ram


class CachingDevice(CpuDevice):
    """A card of 8 GiB whose allocator has kept 1.6 GiB of freed tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = 1600 * MIB

    def own_memory(self) -> OwnMemory:
        return OwnMemory(free=7800 * MIB - self.kept, runtime=300 * MIB)

    def give_back_freed(self) -> None:
        self.kept = 0


def test_memory_that_measurements_have_freed_is_free(cgroups: Path) -> None:
    found = available_memory(CachingDevice())
    assert found.has_own_memory
    assert found.device == int(7800 * MIB * DEVICE_SHARE)


def test_without_limits_the_free_ram_counts(cgroups: Path) -> None:
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal"))
    assert 0 < free() < total * RAM_SHARE
    group(cgroups, limit="max")
    own(cgroups, "0::/\n")
    assert free() > MIB


@pytest.mark.parametrize("version", [1, 2])
def test_a_groups_limit_counts_without_its_anonymous_memory(cgroups: Path, version: int) -> None:
    mount = cgroups if version == 2 else cgroups / "memory"
    group(mount / "mine", limit=40 * MIB, used=10 * MIB, version=version)
    own(cgroups, "0::/mine\n" if version == 2 else "9:cpu:/\n4:memory:/mine\n0::/\n")
    found = available_memory(CPU)
    assert found.ram == int(30 * MIB * RAM_SHARE)
    assert found.device == int(30 * MIB * CPU_DEVICE_SHARE)
    assert not found.has_own_memory


@pytest.mark.parametrize(("outer", "inner"), [(50, 40), (40, 50)])
def test_the_tightest_of_the_groups_around_the_process_counts(
    cgroups: Path, outer: int, inner: int
) -> None:
    group(cgroups / "a", limit=outer * MIB)
    group(cgroups / "a" / "b", limit=inner * MIB)
    group(cgroups / "other", limit=MIB)
    own(cgroups, "0::/a/b\n")
    assert free() == int(40 * MIB * RAM_SHARE)


def test_a_container_sees_its_group_as_the_mount_itself(cgroups: Path) -> None:
    group(cgroups, limit=40 * MIB)
    own(cgroups, "0::/docker/0123\n")
    assert free() == int(40 * MIB * RAM_SHARE)


def test_a_group_without_a_limit_limits_nothing(cgroups: Path) -> None:
    group(cgroups, limit=40 * MIB)
    group(cgroups / "a", limit="max")
    own(cgroups, "0::/a\n")
    assert free() == int(40 * MIB * RAM_SHARE)


@pytest.mark.parametrize("name", ["tpu", "mps", "cuda:99", "cuda:x"])
def test_a_missing_device_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=f"device: '{name}'"):
        choose_device(name)


def test_the_cpu_is_a_device() -> None:
    assert choose_device("cpu").torch_device == CPU.torch_device


def test_ram_for_code_that_will_be_compiled_is_not_planned_for_anything_else(
    cgroups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    group(cgroups / "mine", limit=400 * MIB, used=100 * MIB)
    own(cgroups, "0::/mine\n")
    monkeypatch.setattr(machine, "bytes_to_compile", lambda: 100 * MIB)
    found = available_memory(CPU, compiles=True)
    assert (found.code, found.ram) == (100 * MIB, int(200 * MIB * RAM_SHARE))
    assert found.device == int(200 * MIB * CPU_DEVICE_SHARE)
    assert available_memory(CPU).code == 0
