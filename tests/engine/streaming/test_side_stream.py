"""Tests of the order between a pass and drafting beside it, on a fake device made of threads."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.streaming.cpu_link import CpuDevice
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.cuda_streams import CudaSideStream
from engine.streaming.side_stream import SideStream
from tests.engine.fake_cuda import WAIT, FakeDevice, current_stream, install

CUDA = torch.device("cuda", 0)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    fake = FakeDevice()
    install(monkeypatch, fake)
    yield fake
    fake.end()


class Kernel:
    """Work on a stream that can be held until `ends` is set."""

    def __init__(self, name: str, ended: list[str], *, held: bool = False) -> None:
        self.began, self.ends, self.done = (threading.Event() for _ in range(3))
        self._name, self._ended = name, ended
        if not held:
            self.ends.set()

    def __call__(self) -> None:
        self.began.set()
        assert self.ends.wait(WAIT)
        self._ended.append(self._name)
        self.done.set()


def test_a_draft_waits_for_work_before_the_pass_but_not_for_the_pass(device: FakeDevice) -> None:
    ended: list[str] = []
    side_stream = CudaSideStream(CUDA)
    keep, layer, draft = (Kernel(n, ended, held=True) for n in ("keep", "layer", "draft"))
    device.compute.launch(keep)
    with side_stream.during_pass():
        device.compute.launch(layer)
        with side_stream.drafting():
            assert current_stream() is not device.compute
            current_stream().launch(draft)
        assert current_stream() is device.compute
        assert keep.began.wait(WAIT)
        draft.ends.set()
        keep.ends.set()
        assert draft.done.wait(WAIT)  # the layer still runs
        layer.ends.set()
    assert ended.index("keep") < ended.index("draft")


@pytest.mark.parametrize("leave", ["joined", "left", "failed"])
def test_work_after_the_pass_waits_for_the_draft(device: FakeDevice, leave: str) -> None:
    ended: list[str] = []
    side_stream = CudaSideStream(CUDA)
    draft, accept = Kernel("draft", ended, held=True), Kernel("accept", ended)

    def walk() -> None:
        with side_stream.during_pass():
            with side_stream.drafting():
                current_stream().launch(draft)
            if leave == "joined":
                side_stream.join()
                device.compute.launch(accept)
            if leave == "failed":
                raise InterruptedError

    if leave == "failed":
        with pytest.raises(InterruptedError):
            walk()
    else:
        walk()
    if leave != "joined":
        device.compute.launch(accept)
    assert draft.began.wait(WAIT)
    draft.ends.set()
    assert accept.done.wait(WAIT)
    assert ended == ["draft", "accept"]


def test_work_after_the_pass_waits_for_a_draft_that_failed(device: FakeDevice) -> None:
    ended: list[str] = []
    side_stream = CudaSideStream(CUDA)
    draft, keep = Kernel("draft", ended, held=True), Kernel("keep", ended)

    def fail() -> None:
        with side_stream.drafting():
            current_stream().launch(draft)
            raise InterruptedError

    with side_stream.during_pass(), pytest.raises(InterruptedError):
        fail()
    device.compute.launch(keep)
    draft.ends.set()
    assert keep.done.wait(WAIT)
    assert ended == ["draft", "keep"]


def test_outside_of_a_pass_drafts_run_on_the_compute_stream(device: FakeDevice) -> None:
    side_stream = CudaSideStream(CUDA)
    with side_stream.drafting():
        assert current_stream() is device.compute
    with side_stream.during_pass():
        side_stream.join()
        with side_stream.drafting():
            assert current_stream() is device.compute


def test_many_passes_with_drafts_keep_their_order(device: FakeDevice) -> None:
    """Each pass stores what was drafted beside it, and the next draft continues from there."""
    device.compute.slow = 0.002
    side_stream = CudaSideStream(CUDA)
    (low,) = device.streams
    low.slow = 0.003
    kept, drafted = [0], [0]

    def keep(number: int) -> Callable[[], None]:
        def run() -> None:
            assert drafted == [number], "stored before it was drafted"
            kept[0] = number

        return run

    def draft(number: int) -> Callable[[], None]:
        def run() -> None:
            assert kept == [number - 1], "drafted before the last pass was stored"
            drafted[0] = number

        return run

    for number in range(1, 60):
        with side_stream.during_pass():
            with side_stream.drafting():
                current_stream().launch(draft(number))
            side_stream.join()
            device.compute.launch(keep(number))


def test_a_cpu_has_a_side_stream_that_does_nothing() -> None:
    device = CpuDevice()
    side_stream = device.side_stream()
    assert type(side_stream) is SideStream
    with side_stream.during_pass(), side_stream.drafting():
        side_stream.join()
    device.use_compute_stream()


def test_the_pass_has_a_higher_priority_than_drafting_ahead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    def stream(device: torch.device, priority: int = 0) -> Any:
        new = SimpleNamespace(priority=priority, waits=[])
        new.wait_stream = new.waits.append
        made.append(new)
        return new

    default = stream(CUDA)
    current = [default]
    monkeypatch.setattr(torch.cuda, "Stream", stream)
    monkeypatch.setattr(torch.cuda, "Event", SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: current[-1])
    monkeypatch.setattr(torch.cuda, "set_stream", current.append)
    CudaDevice(CUDA).use_compute_stream()
    CudaDevice(CUDA).use_compute_stream()  # another model, loaded by the same thread
    CudaSideStream(CUDA)
    _, compute, ahead = made
    assert current == [default, compute]
    assert compute.priority < ahead.priority
    assert compute.waits == [default]
