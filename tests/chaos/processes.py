"""The processes of a server: which is the engine, which is the text process."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.hostile_clients.process_memory import list_descendants
from engine.process.child import CHILD_ENVIRONMENT

# The front end sets it for the engine only.
ENGINES_VARIABLE = "PYTORCH_ALLOC_CONF"
assert ENGINES_VARIABLE in CHILD_ENVIRONMENT


@dataclass(frozen=True)
class Processes:
    """The ids of a server's processes; None: there is none now."""

    front_end: int
    engine: int | None
    text: int | None  # the host of the text process
    others: tuple[int, ...]

    @property
    def all(self) -> list[int]:
        """All processes."""
        known = [self.front_end, self.engine, self.text, *self.others]
        return [pid for pid in known if pid is not None]


def find_processes(front_end: int) -> Processes:
    """Return the processes of a server whose front end has this id."""
    found = list_descendants(front_end)
    engine = next((pid for pid in found if _is_engine(pid)), None)
    children = [pid for pid in found if pid != engine and _parent(pid) == front_end]
    text = next((pid for pid in children if _has_libraries(pid)), None)
    others = tuple(pid for pid in found if pid not in (engine, text))
    return Processes(front_end, engine, text, others)


def is_alive(pid: int) -> bool:
    """Return whether a process exists and has not ended."""
    try:
        return _fields(pid)[0] not in ("Z", "X")
    except OSError:
        return False


def is_stopped(pid: int) -> bool:
    """Return whether a process was stopped by a signal."""
    with suppress(OSError):
        return _fields(pid)[0] in ("T", "t")
    return False


def _fields(pid: int) -> list[str]:
    """Return the fields of a process's state, from its state letter on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _parent(pid: int) -> int:
    with suppress(OSError):
        return int(_fields(pid)[1])
    return 0


def _is_engine(pid: int) -> bool:
    """Return whether a process has the variable of engines, and is no fork of a fork."""
    with suppress(OSError):
        own = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return any(item.startswith(ENGINES_VARIABLE.encode()) for item in own)
    return False


def _has_libraries(pid: int) -> bool:
    with suppress(OSError):
        return "tokenizers" in Path(f"/proc/{pid}/maps").read_text()
    return False
