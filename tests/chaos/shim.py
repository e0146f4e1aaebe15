"""The library that a server preloads, and the memory that says which of its calls fail."""

import ctypes
import mmap
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
FAULTS = (  # in the order of the library's enum
    "read_error",
    "read_short",
    "read_end",
    "read_flip",
    "read_stall",
    "write_error",
    "write_short",
    "write_stall",
    "open_error",
    "sync_error",
    "map_error",
    "name_error",
)
MILLION = 1_000_000


class NoCompiler(Exception):
    """The library cannot be compiled on this machine; the message says why."""


class _Control(ctypes.Structure):
    _fields_ = (
        ("clock_shift_ns", ctypes.c_int64),
        ("seed", ctypes.c_uint64),
        ("is_active", ctypes.c_uint32),
        ("stall_ms", ctypes.c_uint32),
        ("rates", ctypes.c_uint32 * len(FAULTS)),
        ("counts", ctypes.c_uint64 * len(FAULTS)),
    )


class Shim:
    """Faults of the disk and of the wall clock, for processes that have `environment`.

    Args:
        folder: an empty folder for the library and its control file.
        target: the folder whose files are struck, with everything below.
        seed: decides which calls are struck.

    The constructor raises `NoCompiler`.
    """

    def __init__(self, folder: Path, target: Path, seed: int) -> None:
        library, path = folder / "shim.so", folder / "control"
        _compile(library)
        path.write_bytes(bytes(ctypes.sizeof(_Control)))
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._control = _Control.from_buffer(self._memory)
        self._control.seed = seed
        self.environment = {
            "LD_PRELOAD": str(library),
            "CHAOS_CONTROL": str(path),
            "CHAOS_FOLDER": str(target.resolve()),
        }

    @property
    def counts(self) -> dict[str, int]:
        """How many calls of all processes were struck, by fault."""
        counts = dict(zip(FAULTS, self._control.counts, strict=True))
        return {fault: count for fault, count in counts.items() if count}

    def strike(self, rates: Mapping[str, float], stall_s: float = 0.0) -> None:
        """Set the chance of each fault per call, from 0 to 1; the others do not happen."""
        self._control.stall_ms = int(1000 * stall_s)
        for number, fault in enumerate(FAULTS):
            self._control.rates[number] = int(rates.get(fault, 0.0) * MILLION)
        self._control.is_active = int(any(rates.values()))

    def shift_clock(self, seconds: float) -> None:
        """Shift the wall clock by so many seconds from the right time."""
        self._control.clock_shift_ns = int(seconds * 1e9)


def _compile(library: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise NoCompiler("there is no C compiler (cc or gcc)")
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode:
        raise NoCompiler(f"{compiler} cannot compile {SOURCE.name}: {made.stderr[-300:]}")
