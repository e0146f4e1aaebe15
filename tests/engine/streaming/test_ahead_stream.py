"""The orders between a pass and what is drafted beside it, on a device of threads."""

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from engine.streaming.ahead_stream import Aside
from engine.streaming.cpu_link import CpuDevice
from engine.streaming.cuda_link import CudaDevice
from engine.streaming.cuda_streams import AheadStream
from tests.engine.fake_cuda import WAIT, FakeDevice, current_stream, install

CUDA = torch.device("cuda", 0)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeDevice]:
    fake = FakeDevice()
    install(monkeypatch, fake)
    yield fake
    fake.end()


class Kernel:
    """Work of a stream that ends when it is told to."""

    def __init__(self, name: str, ended: list[str], *, held: bool = False) -> None:
        self.began, self.ends, self.through = (threading.Event() for _ in range(3))
        self._name, self._ended = name, ended
        if not held:
            self.ends.set()

    def __call__(self) -> None:
        self.began.set()
        assert self.ends.wait(WAIT)
        self._ended.append(self._name)
        self.through.set()


def test_a_draft_waits_for_what_came_before_the_pass_and_for_none_of_it(device: FakeDevice) -> None:
    ended: list[str] = []
    aside = AheadStream(CUDA)
    keep, layer, draft = (Kernel(n, ended, held=True) for n in ("keep", "layer", "draft"))
    device.compute.launch(keep)
    with aside.passing():
        device.compute.launch(layer)
        with aside.drafting():
            assert current_stream() is not device.compute
            current_stream().launch(draft)
        assert current_stream() is device.compute
        assert keep.began.wait(WAIT)
        draft.ends.set()
        keep.ends.set()
        assert draft.through.wait(WAIT)  # the layer still runs
        layer.ends.set()
    assert ended.index("keep") < ended.index("draft")


@pytest.mark.parametrize("leave", ["joined", "left", "failed"])
def test_what_follows_the_pass_waits_for_the_draft(device: FakeDevice, leave: str) -> None:
    ended: list[str] = []
    aside = AheadStream(CUDA)
    draft, accept = Kernel("draft", ended, held=True), Kernel("accept", ended)

    def walk() -> None:
        with aside.passing():
            with aside.drafting():
                current_stream().launch(draft)
            if leave == "joined":
                aside.join()
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
    assert accept.through.wait(WAIT)
    assert ended == ["draft", "accept"]


def test_a_draft_that_fails_is_waited_for_as_well(device: FakeDevice) -> None:
    ended: list[str] = []
    aside = AheadStream(CUDA)
    draft, keep = Kernel("draft", ended, held=True), Kernel("keep", ended)

    def fail() -> None:
        with aside.drafting():
            current_stream().launch(draft)
            raise InterruptedError

    with aside.passing(), pytest.raises(InterruptedError):
        fail()
    device.compute.launch(keep)
    draft.ends.set()
    assert keep.through.wait(WAIT)
    assert ended == ["draft", "keep"]


def test_outside_of_a_pass_drafts_run_in_turn(device: FakeDevice) -> None:
    aside = AheadStream(CUDA)
    with aside.drafting():
        assert current_stream() is device.compute
    with aside.passing():
        aside.join()
        with aside.drafting():
            assert current_stream() is device.compute


def test_many_passes_in_random_order(device: FakeDevice) -> None:
    """Each pass keeps what was drafted beside it, and is drafted upon."""
    device.compute.slow = 0.002
    aside = AheadStream(CUDA)
    (low,) = device.streams
    low.slow = 0.003
    kept, drafted = [0], [0]

    def keep(number: int) -> Callable[[], None]:
        def run() -> None:
            assert drafted == [number], "kept before it was drafted"
            kept[0] = number

        return run

    def draft(number: int) -> Callable[[], None]:
        def run() -> None:
            assert kept == [number - 1], "drafted upon what was not kept yet"
            drafted[0] = number

        return run

    for number in range(1, 60):
        with aside.passing():
            with aside.drafting():
                current_stream().launch(draft(number))
            aside.join()
            device.compute.launch(keep(number))


def test_a_cpu_has_one_order() -> None:
    device = CpuDevice()
    aside = device.ahead_stream()
    assert type(aside) is Aside
    with aside.passing(), aside.drafting():
        aside.join()
    device.use_compute_stream()


def test_the_pass_computes_above_what_is_drafted_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
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
    AheadStream(CUDA)
    _, compute, ahead = made
    assert current == [default, compute]
    assert compute.priority < ahead.priority
    assert compute.waits == [default]
