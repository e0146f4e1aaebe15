"""A happens-before checker: it finds accesses to the same memory that nothing puts in order.

Each stream counts its operations, and so does the host. A clock says up to which operation of every
other stream something is known to be complete; events and synchronization pass clocks on (Lamport,
1978; Fidge and Mattern, 1988). Two accesses to the same memory of which one writes must be ordered:
the clock of the later one has to include the earlier one. It does not matter in which order they
happen to run, so one run that is too early by luck still shows the error.
"""

import sys
import threading
import weakref
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from types import CodeType, FrameType
from typing import Any

from torch import Tensor

import engine

HOST = 0  # the actor that all threads of the host are together
SHOWN_FRAMES = 4
_SOURCES = str(next(iter(engine.__path__)))

Parts = Sequence[int]
WHOLE: Parts = (0,)


class Clock(dict[int, int]):
    """By actor, the number of its last operation that is known to be complete."""

    def join(self, other: "Clock") -> None:
        """Know what `other` knows too."""
        for actor, count in other.items():
            if count > self.get(actor, 0):
                self[actor] = count

    def includes(self, access: "Access") -> bool:
        return self.get(access.actor, 0) >= access.count


@dataclass(frozen=True, slots=True)
class Access:
    """An operation of one actor, with the lines of the engine that called it, innermost first."""

    actor: int
    count: int
    operation: str
    frames: tuple[tuple[CodeType, int], ...]

    def describe(self, names: dict[int, str]) -> str:
        lines = [
            f"{code.co_filename.removeprefix(_SOURCES)[1:]}:{line} {code.co_qualname}"
            for code, line in self.frames
        ]
        return f"{self.operation} on {names[self.actor]} ({' < '.join(lines)})"


@dataclass(slots=True)
class Memory:
    """The last accesses to one allocation, by its parts.

    Most allocations have one part. A KV pool has one for each slot.
    """

    home: int  # the stream that it was allocated on
    alive: weakref.ref[Any]
    slots: tuple[int, int] | None = None  # of a pool: elements of one layer, and of one slot
    writes: dict[int, Access] = field(default_factory=dict)
    reads: dict[int, dict[int, Access]] = field(default_factory=dict)  # by part and actor

    def accesses(self) -> Iterable[Access]:
        yield from self.writes.values()
        for own in self.reads.values():
            yield from own.values()


class OrderChecker:
    """The clocks of all streams and host threads, and the races that were found."""

    def __init__(self) -> None:
        self.races: Counter[str] = Counter()
        self.num_accesses = 0
        self.names = {HOST: "the host"}
        self._memory: dict[int, Memory] = {}  # by id of the storage
        self._freed: dict[
            int, dict[int, Access]
        ] = {}  # by home and actor: accesses to freed memory
        self._host_count = 0
        self._local = threading.local()
        self._lock = threading.RLock()

    def new_actor(self, name: str) -> int:
        """Return the number of a new stream."""
        number = len(self.names)
        self.names[number] = f"stream {number} ({name})"
        return number

    @property
    def host_clock(self) -> Clock:
        """What the calling thread knows. Threads start without knowledge of the streams."""
        if not hasattr(self._local, "clock"):
            self._local.clock = Clock()
        clock: Clock = self._local.clock
        clock[HOST] = self._host_count
        return clock

    def launch(
        self,
        actor: int,
        clock: Clock,
        operation: str,
        reads: Iterable[tuple[Tensor, Parts]],
        writes: Iterable[tuple[Tensor, Parts]],
        new: Iterable[Tensor] = (),
    ) -> None:
        """Record an operation of a stream, whose clock is `clock`, launched by this thread."""
        with self._lock:
            clock.join(self.host_clock)
            clock[actor] = clock.get(actor, 0) + 1
            access = Access(actor, clock[actor], operation, _frames())
            for tensor, parts in reads:
                self._read(self.memory(tensor, actor), parts, access, clock)
            for tensor, parts in writes:
                self._write(self.memory(tensor, actor), parts, access, clock)
            for tensor in new:
                self._allocate(actor, access, clock)
                self._write(self.memory(tensor, actor), WHOLE, access, clock)

    def on_host(self, operation: str, reads: Sequence[Tensor], writes: Sequence[Tensor]) -> None:
        """Record that the calling thread itself reads and writes memory."""
        with self._lock:
            self._host_count += 1
            clock = self.host_clock
            access = Access(HOST, self._host_count, operation, _frames())
            for tensor in reads:
                self._read(self.memory(tensor, HOST), WHOLE, access, clock)
            for tensor in writes:
                self._write(self.memory(tensor, HOST), WHOLE, access, clock)

    def knows(self, tensor: Tensor) -> bool:
        """Return True if the tensor's memory was accessed before."""
        return id(tensor.untyped_storage()) in self._memory

    def memory(self, tensor: Tensor, home: int = HOST) -> Memory:
        """Return what is known of a tensor's memory."""
        storage = tensor.untyped_storage()
        key = id(storage)
        with self._lock:
            if key not in self._memory:
                alive = weakref.ref(storage, lambda _: self._free(key))
                self._memory[key] = Memory(home, alive)
            return self._memory[key]

    def bytes_of(self, home: int) -> int:
        """Return the bytes of all memory that was allocated on a stream and is not freed."""
        with self._lock:
            storages = [own.alive() for own in self._memory.values() if own.home == home]
            return sum(storage.nbytes() for storage in storages if storage is not None)

    def _read(self, memory: Memory, parts: Parts, access: Access, clock: Clock) -> None:
        self.num_accesses += 1
        for part in parts:
            written = memory.writes.get(part)
            if written is not None and not clock.includes(written):
                self._report(access, "reads what is written by", written)
            memory.reads.setdefault(part, {})[access.actor] = access

    def _write(self, memory: Memory, parts: Parts, access: Access, clock: Clock) -> None:
        self.num_accesses += 1
        for part in parts:
            written = memory.writes.get(part)
            if written is not None and not clock.includes(written):
                self._report(access, "overwrites what is written by", written)
            for read in memory.reads.pop(part, {}).values():
                if not clock.includes(read):
                    self._report(access, "overwrites what is read by", read)
            memory.writes[part] = access

    def _free(self, key: int) -> None:
        """Note which streams may still use memory that its home stream may give away again."""
        with self._lock:
            memory = self._memory.pop(key)
            for access in memory.accesses():
                if access.actor != memory.home:
                    pending = self._freed.setdefault(memory.home, {})
                    known = pending.get(access.actor)
                    if known is None or known.count < access.count:
                        pending[access.actor] = access

    def _allocate(self, home: int, access: Access, clock: Clock) -> None:
        """Check that all memory which the home stream has got back may be written again.

        torch's allocator gives freed memory to the next request on the stream that it came from.
        """
        pending = self._freed.pop(home, {})
        for used in pending.values():
            if not clock.includes(used):
                self._report(access, "may be given freed memory that is still used by", used)

    def _report(self, access: Access, how: str, earlier: Access) -> None:
        text = f"{access.describe(self.names)}\n  {how}\n  {earlier.describe(self.names)}"
        self.races[text] += 1

    def check(self) -> None:
        """Raise AssertionError with all races that were found."""
        assert not self.races, "\n".join(
            f"{count} x {text}" for text, count in self.races.most_common()
        )


def _frames() -> tuple[tuple[CodeType, int], ...]:
    """Return the innermost lines of the engine that are running now."""
    found: list[tuple[CodeType, int]] = []
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and len(found) < SHOWN_FRAMES:
        if frame.f_code.co_filename.startswith(_SOURCES):
            found.append((frame.f_code, frame.f_lineno))
        frame = frame.f_back
    return tuple(found)
