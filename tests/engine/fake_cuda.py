"""A fake CUDA device made of threads: streams run late and at random speed, ordered by events.

The `copy_` of a device tensor is queued in the current stream, so that it reads its source when the
device executes it and not when it is launched. A staging buffer that is refilled too early, or a
slot that is overwritten or read too early, gives wrong bytes, as on a real device.
"""

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import Tensor

WAIT = 30.0  # seconds after which an event that does not come fails the test


class FakeStream:
    """A queue of operations and the thread that runs them in order."""

    def __init__(self, device: object = None) -> None:
        self.slow = 0.0  # longest duration of an operation in seconds
        self.errors: list[BaseException] = []
        self.copies_under_way: deque[Tensor] = deque()  # their sources
        self._queue: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="fake-device", daemon=True)
        self._thread.start()

    def launch(self, operation: Callable[[], object]) -> None:
        self._queue.put(operation)

    def wait_event(self, event: "FakeEvent") -> None:
        if (mark := event.mark) is not None:  # the latest record, as in CUDA
            self.launch(lambda: _wait(mark))

    def synchronize(self) -> None:
        done = threading.Event()
        self.launch(done.set)
        _wait(done)

    def end(self) -> None:
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (operation := self._queue.get()) is not None:
            time.sleep(random.uniform(0, self.slow))
            try:
                operation()
            except AssertionError as error:
                self.errors.append(error)


class FakeEvent:
    def __init__(self, enable_timing: bool = False, blocking: bool = False) -> None:
        self.mark: threading.Event | None = None
        self.at = 0.0
        self.timed = enable_timing

    def record(self, stream: FakeStream | None = None) -> None:
        mark = self.mark = threading.Event()

        def reached() -> None:
            self.at = time.perf_counter()
            mark.set()

        (stream or current_stream()).launch(reached)

    def query(self) -> bool:
        return self.mark is None or self.mark.is_set()

    def synchronize(self) -> None:
        if self.mark is not None:
            _wait(self.mark)

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self.timed
        assert end.timed
        assert self.query()
        assert end.query()
        return (end.at - self.at) * 1e3


class DeviceTensor(Tensor):
    """A tensor in the memory of the fake device."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not Tensor.copy_:
            return super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]  # torch's
        destination, source = args[0].as_subclass(Tensor), args[1]
        assert kwargs == {"non_blocking": True}
        stream = current_stream()
        stream.copies_under_way.append(source)
        stream.launch(lambda: destination.copy_(source))
        stream.launch(stream.copies_under_way.popleft)
        return args[0]


class FakeCudart:
    """A fake of the CUDA runtime that can pin up to `limit` bytes of host memory."""

    def __init__(self, streams: list[FakeStream]) -> None:
        self.limit = 2**40
        self.pinned: dict[int, int] = {}
        self._streams = streams

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        assert threading.current_thread().name.startswith("weights-pin")
        assert address % 4096 == 0
        assert address not in self.pinned
        if sum(self.pinned.values()) + nbytes > self.limit:
            return 2  # cudaErrorMemoryAllocation
        self.pinned[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        assert not any(stream.copies_under_way for stream in self._streams), "a copy is under way"
        del self.pinned[address]
        return 0


class FakeDevice:
    """The fake device that tests control: its streams and its pinned memory."""

    def __init__(self) -> None:
        self.copy_speed = 0.0
        self.streams: list[FakeStream] = []
        self.cudart = FakeCudart(self.streams)
        self.compute = FakeStream()

    def new_stream(self, device: object = None, priority: int = 0) -> FakeStream:
        stream = FakeStream()
        stream.slow = self.copy_speed
        self.streams.append(stream)
        return stream

    def end(self) -> None:
        for stream in [self.compute, *self.streams]:
            stream.synchronize()
            stream.end()
            for error in stream.errors:
                raise error


def current_stream() -> FakeStream:
    stream: Any = torch.cuda.current_stream()
    assert isinstance(stream, FakeStream)
    return stream


def _wait(mark: threading.Event) -> None:
    assert mark.wait(WAIT), f"an event did not come within {WAIT} s"


def install(monkeypatch: pytest.MonkeyPatch, device: FakeDevice) -> None:
    """Replace `torch.cuda` and the allocation of device memory by the fake device."""
    current = threading.local()
    empty = torch.empty

    @contextmanager
    def stream(chosen: FakeStream) -> Iterator[None]:
        before = getattr(current, "stream", device.compute)
        current.stream = chosen
        try:
            yield
        finally:
            current.stream = before

    @contextmanager
    def no_device(chosen: object) -> Iterator[None]:
        yield

    def allocate(*shape: Any, device: Any = None, **options: Any) -> Tensor:
        on_device = device is not None and torch.device(device).type == "cuda"
        memory = empty(*shape, **options)
        if on_device:  # the allocator reuses a block that an earlier kernel still writes to
            current_stream().launch(lambda: memory.fill_(13))
        return memory.as_subclass(DeviceTensor) if on_device else memory

    monkeypatch.setattr(torch, "empty", allocate)
    monkeypatch.setattr(torch.cuda, "Stream", device.new_stream)
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "device", no_device)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: device.cudart)
    monkeypatch.setattr(
        torch.cuda, "current_stream", lambda *_: getattr(current, "stream", device.compute)
    )
