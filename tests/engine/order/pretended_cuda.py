"""A pretended CUDA device: the CPU computes at once, and a checker records what CUDA would order.

The engine uses its own code for CUDA on it: links, rings, page stores, side streams and graphs.
Operations run at once, in the order of the calls, so results are right. For each operation the
current stream, and the memory that it reads and writes, are given to an `OrderChecker`. Events have
happened only when the host knows it, or after they have been asked for a few times.

tests/engine/fake_cuda.py is the other fake device: its streams are threads that really run late.
"""

# mypy: disallow-untyped-calls=False
# torch declares no types for dispatch modes.

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from engine.kv.page_pool import PagePool
from engine.planning import link_probe
from engine.streaming import cuda_link, workers
from engine.streaming.coded import DecodedUnits
from engine.streaming.cuda_link import CudaDevice, CudaLink
from engine.streaming.device import OwnMemory
from engine.streaming.link import Meters
from engine.streaming.pinned import copy_bytes
from engine.weights.layout import UnitReader
from tests.engine.order.clocks import WHOLE, Clock, OrderChecker, Parts

LATE = 2  # times that an event says it has not happened
UPLOADS = ("to", "lift_fresh")  # copies from the host, which do nothing on a CPU
COPIED_BYTES = 1 << 16  # of the copy by which loading times the link
DECODED_SHAPE = (64, 256)  # of the weight by which it times the decoder


class PretendedStream:
    """A stream: a clock of what has to be complete before its next operation."""

    def __init__(self, cuda: "PretendedCuda", name: str, priority: int = 0) -> None:
        self.priority = priority
        self.clock = Clock()
        self.number = cuda.checker.new_actor(name)
        self._cuda = cuda

    def wait_event(self, event: "PretendedEvent") -> None:
        self.clock.join(event.clock)

    def wait_stream(self, other: "PretendedStream") -> None:
        self.clock.join(other.clock)

    def synchronize(self) -> None:
        self._cuda.checker.host_clock.join(self.clock)


class PretendedEvent:
    """An event: the clock of the stream in which it was last recorded.

    An event that only gives times orders nothing: on a real device it may not have happened yet.
    """

    def __init__(
        self, cuda: "PretendedCuda", enable_timing: bool = False, blocking: bool = False
    ) -> None:
        self.clock = Clock()
        self._cuda = cuda
        self._only_times = enable_timing and not blocking
        self._asked = LATE

    def record(self, stream: PretendedStream | None = None) -> None:
        stream = stream or self._cuda.current_stream()
        stream.clock.join(self._cuda.checker.host_clock)
        self.clock = Clock(stream.clock)
        self._asked = 0

    def query(self) -> bool:
        self._asked += 1
        if self._asked <= LATE:
            return False
        if not self._only_times:
            self.synchronize()
        return True

    def synchronize(self) -> None:
        self._asked = LATE
        self._cuda.checker.host_clock.join(self.clock)

    def elapsed_time(self, end: "PretendedEvent") -> float:
        return 1e-3


class PretendedGraph:
    """A graph: the operations that ran while it was captured, which `replay` runs again."""

    def __init__(self, cuda: "PretendedCuda") -> None:
        self._cuda = cuda
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        self._cuda.num_replayed += 1
        for operation in self.operations:
            with torch.utils._python_dispatch._disable_current_modes():
                self._repeat(*operation)
            self._cuda.record(*operation)

    def _repeat(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Run an operation and store its results where it stored them when it was captured."""
        inputs = {id(own.untyped_storage()) for own in _tensors((args, kwargs))}
        for old, new in zip(_tensors(out), _tensors(func(*args, **kwargs)), strict=True):
            if id(old.untyped_storage()) not in inputs:
                old.copy_(new)


class _HostReader(UnitReader):
    """A reader whose reads are recorded as writes of the host, and decoding as one operation."""

    def __init__(self, reader: UnitReader, cuda: "PretendedCuda") -> None:
        self.layouts = reader.layouts
        self._reader = reader
        self._cuda = cuda

    def pieces(self, index: int) -> Sequence[range]:
        return self._reader.pieces(index)

    def read_piece(self, index: int, piece: range, memory: Tensor) -> None:
        self._cuda.checker.on_host("read_piece", [], [memory])
        with torch.utils._python_dispatch._disable_current_modes():
            self._reader.read_piece(index, piece, memory)

    def is_coded(self, index: int) -> bool:
        return self._reader.is_coded(index)

    def decode(self, index: int, memory: Tensor, slot: Tensor) -> None:
        assert isinstance(self._reader, DecodedUnits), "no other reader has coded units"
        copies = self._reader.copies(index).values()
        read = [memory, *(own for copy in copies for own in (copy.pairs, copy.scales))]
        stream = self._cuda.current_stream()
        self._cuda.checker.launch(
            stream.number, stream.clock, "decode", [(own, WHOLE) for own in read], [(slot, WHOLE)]
        )
        self._cuda.num_decoded += 1
        with torch.utils._python_dispatch._disable_current_modes():
            self._reader.decode(index, memory, slot)


class PretendedDevice(CudaDevice):
    """The CUDA device of the engine over the memory of the CPU."""

    def __init__(self, cuda: "PretendedCuda") -> None:
        super().__init__(torch.device("cpu"))
        self._cuda = cuda

    @property
    def can_decode(self) -> bool:
        return True

    def own_memory(self) -> OwnMemory:
        return OwnMemory(1 << 30, 0)

    def open_link(
        self,
        reader: UnitReader,
        meters: Meters,
        num_readers: int,
        staged: Sequence[int],
        sent: Sequence[int],
        num_copiers: int,
    ) -> CudaLink:
        reader = _HostReader(reader, self._cuda)
        return super().open_link(reader, meters, num_readers, staged, sent, num_copiers)


class PretendedCudart:
    """The part of the CUDA runtime that pins memory; it can pin up to `limit` bytes."""

    def __init__(self) -> None:
        self.limit = 2**40
        self.pinned: dict[int, int] = {}

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> int:
        if sum(self.pinned.values()) + nbytes > self.limit:
            return 2  # cudaErrorMemoryAllocation
        self.pinned[address] = nbytes
        return 0

    def cudaHostUnregister(self, address: int) -> int:
        del self.pinned[address]
        return 0


class _Recording(TorchDispatchMode):
    def __init__(self, cuda: "PretendedCuda") -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        self._cuda.ran(func, args, kwargs or {}, out)
        return out


class PretendedCuda:
    """What tests use of the pretended device: its checker, streams and counts."""

    def __init__(self) -> None:
        self.checker = OrderChecker()
        self.device = PretendedDevice(self)
        self.cudart = PretendedCudart()
        self.num_captured = 0
        self.num_replayed = 0
        self.num_decoded = 0  # units
        self.compute: PretendedStream | None = None  # the stream of passes, once there is one
        self._local = threading.local()
        self._default = PretendedStream(self, "default")

    def current_stream(self, *_: object) -> PretendedStream:
        stream: PretendedStream = getattr(self._local, "stream", self._default)
        return stream

    def set_stream(self, stream: PretendedStream) -> None:
        self._local.stream = stream

    def new_stream(self, device: object = None, priority: int = 0) -> PretendedStream:
        stream = PretendedStream(self, "compute" if priority < 0 else "beside", priority)
        if priority < 0:
            self.compute = stream
        return stream

    @contextmanager
    def stream(self, chosen: PretendedStream) -> Iterator[None]:
        before = self.current_stream()
        self.set_stream(chosen)
        try:
            yield
        finally:
            self.set_stream(before)

    @contextmanager
    def graph(self, graph: PretendedGraph, *, stream: PretendedStream, **_: Any) -> Iterator[None]:
        self.num_captured += 1
        self._local.capturing = graph
        try:
            with self.stream(stream):
                yield
        finally:
            self._local.capturing = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record all operations of the calling thread in this block."""
        self._local.is_recording = True
        try:
            with _Recording(self):
                yield
        finally:
            self._local.is_recording = False

    def ran(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Record an operation, or add it to the graph that this thread captures."""
        graph = getattr(self._local, "capturing", None)
        if graph is not None:
            graph.operations.append((func, args, kwargs, out))
        else:
            self.record(func, args, kwargs, out)

    def record(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        """Record an operation on the current stream."""
        inputs, outputs = _tensors((args, kwargs)), _tensors(out)
        written = {id(own) for own in _written(func, args, kwargs)}
        known = {id(own.untyped_storage()) for own in inputs}
        new = [own for own in outputs if id(own.untyped_storage()) not in known]
        name = func.overloadpacket.__name__
        if outputs and not new and not written:  # a view
            if name not in UPLOADS or self.checker.knows(inputs[0]):
                return
            new, inputs = inputs, []
        stream = self.current_stream()
        accesses = [(own, self._parts(func, args, own)) for own in inputs]
        self.checker.launch(
            stream.number,
            stream.clock,
            name,
            [access for access in accesses if id(access[0]) not in written],
            [access for access in accesses if id(access[0]) in written],
            new,
        )
        if not outputs:  # a number on the host, which has waited for it
            stream.synchronize()

    def compute_bytes(self) -> int:
        """Return the bytes that are allocated on the stream of passes."""
        return self.checker.bytes_of(self.compute.number) if self.compute else 0

    def read_on_host(self, tensor: Tensor) -> None:
        """Record that the host waits for the current stream and reads a tensor."""
        if getattr(self._local, "is_recording", False):
            stream = self.current_stream()
            read = [(tensor, self._parts(None, (), tensor))]
            self.checker.launch(stream.number, stream.clock, "tolist", read, [])
            stream.synchronize()

    def _parts(self, func: Any, args: Any, tensor: Tensor) -> Parts:
        """Return the parts of its memory that an operation uses of a tensor."""
        sizes = self.checker.memory(tensor, self.current_stream().number).slots
        if sizes is None:
            return WHOLE
        layer, slot = sizes
        first = tensor.storage_offset() % layer // slot
        if func in (torch.ops.aten.index_copy_.default, torch.ops.aten.index_select.default):
            assert tensor is args[0] and tensor.stride(args[1]) == slot
            return [first + int(index) for index in args[2].numpy()]
        extent = sum(
            (size - 1) * stride
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            if stride < layer
        )
        return range(first, (tensor.storage_offset() % layer + extent) // slot + 1)


def install(patch: pytest.MonkeyPatch, cuda: PretendedCuda) -> None:
    """Replace `torch.cuda` by the pretended device, and let `choose_device` return it."""
    own_tolist, own_init, own_run = Tensor.tolist, PagePool.__init__, workers.JobBatch.run

    @contextmanager
    def no_device(_: object) -> Iterator[None]:
        yield

    def tolist(tensor: Tensor) -> Any:
        cuda.read_on_host(tensor)
        return own_tolist(tensor)

    def init(pool: PagePool, *arguments: Any, **named: Any) -> None:
        own_init(pool, *arguments, **named)
        memory = cuda.checker.memory(pool.memory)
        memory.slots = pool.memory.stride(0), pool.memory.stride(1)
        if (written := memory.writes.pop(0, None)) is not None:
            memory.writes = dict.fromkeys(range(pool.memory.shape[1]), written)

    def run(batch: workers.JobBatch, job: Callable[[], None]) -> None:
        with cuda.recording():
            own_run(batch, job)

    def copy_on_host(destination: Tensor, source: Tensor) -> None:
        cuda.checker.on_host("copy_bytes", [source], [destination])
        copy_bytes(destination, source)

    patch.setattr(Tensor, "tolist", tolist)
    patch.setattr(PagePool, "__init__", init)
    patch.setattr(workers.JobBatch, "run", run)
    patch.setattr(cuda_link, "copy_bytes", copy_on_host)
    patch.setattr(link_probe, "COPIED_BYTES", COPIED_BYTES)
    patch.setattr(link_probe, "DEVICE_SHAPE", DECODED_SHAPE)
    patch.setattr("engine.runtime.target_files.choose_device", lambda *_: cuda.device)
    replaced: dict[str, Any] = {
        "Stream": cuda.new_stream,
        "Event": partial(PretendedEvent, cuda),
        "CUDAGraph": lambda: PretendedGraph(cuda),
        "graph": cuda.graph,
        "graph_pool_handle": object,
        "stream": cuda.stream,
        "set_stream": cuda.set_stream,
        "current_stream": cuda.current_stream,
        "synchronize": lambda *_: None,
        "device": no_device,
        "cudart": lambda: cuda.cudart,
        "get_device_name": lambda *_: "pretended",
    }
    for name, value in replaced.items():
        patch.setattr(torch.cuda, name, value)


def _tensors(values: Any) -> list[Tensor]:
    """Return the tensors in nested arguments or results of an operation."""
    if isinstance(values, Tensor):
        return [values]
    if isinstance(values, dict):
        values = values.values()
    elif not isinstance(values, list | tuple):
        return []
    return [own for value in values for own in _tensors(value)]


def _written(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments that an operation writes."""
    return [
        own
        for number, name in _written_arguments(func)
        for own in _tensors(args[number] if number < len(args) else kwargs.get(name))
    ]


@cache
def _written_arguments(func: Any) -> list[tuple[int, str]]:
    """Return the numbers and names of the arguments that an operation writes."""
    arguments = enumerate(func._schema.arguments)
    return [(n, own.name) for n, own in arguments if own.alias_info and own.alias_info.is_write]
