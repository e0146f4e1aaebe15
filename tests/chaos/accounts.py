"""What a server holds while it rests, and what it holds more than at an earlier rest.

Two kinds of growth are judged. After acts in which things are broken, a process may keep what its
allocators had at a peak, so that growth has some slack. Between plain requests, memory that grows
steadily has none: the slope is the median of those between all pairs of accounts of the later half,
which neither a warm-up nor a single block of an allocator changes (Theil and Sen's estimator).
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import median

from benchmarks.hostile_clients.process_memory import (
    list_descendants,
    read_anonymous_bytes,
    read_resident_bytes,
)
from engine.kv.disk.block import BlockName
from tests.chaos.processes import find_processes

MB = 1_000_000
SHARED_MEMORY = Path("/dev/shm")
BYTES_PER_REQUEST = 1000.0  # 1 MB per 1,000 requests
ITEMS_PER_REQUEST = 0.001  # of descriptors, threads and files
# What allocators keep of a peak, and pools of threads and workers that grow to their size.
SLACK_BYTES = 20 * MB
SLACK_ITEMS = 8
FEWEST = 5  # accounts of which a steady growth is seen
MEMORY = ("front end", "engine", "text")


@dataclass(frozen=True)
class Account:
    """What a resting server holds.

    Args:
        requests: that were sent since the piece began.
        amounts: bytes of memory by process, and numbers of descriptors, threads and files.
        owners: the processes that the amounts are of, by the first word of their names.
    """

    requests: int
    amounts: Mapping[str, float]
    owners: Mapping[str, int]


@dataclass(frozen=True)
class Leak:
    """An amount that grew by more than its bound between two rests."""

    what: str
    growth: float
    bound: float
    requests: int

    def __str__(self) -> str:
        unit, scale = ("MB", MB) if self.what in MEMORY else ("", 1)
        return (
            f"{self.what} grew by {self.growth / scale:.1f} {unit} in {self.requests} requests, "
            f"at most {self.bound / scale:.1f} are allowed"
        )


def find_leaks(accounts: Sequence[Account]) -> list[Leak]:
    """Return what grew too much from one account to the last one with the same owner.

    What another process holds is no growth, so each amount is compared over the life of its owner.
    """
    found = []
    for what in dict.fromkeys(what for account in accounts for what in account.amounts):
        for first, last in _lives(accounts, what):
            requests = last.requests - first.requests
            growth = last.amounts[what] - first.amounts[what]
            per_request = BYTES_PER_REQUEST if what in MEMORY else ITEMS_PER_REQUEST
            slack = SLACK_BYTES if what in MEMORY else SLACK_ITEMS
            bound = slack + per_request * requests
            if growth > bound:
                found.append(Leak(what, growth, bound, requests))
    return found


def find_steady_leaks(accounts: Sequence[Account]) -> list[Leak]:
    """Return what memory grew too much, steadily, over accounts between plain requests.

    The figures are those for 1,000 requests. Fewer than `FEWEST` accounts of one process show
    nothing.
    """
    found = []
    for what in MEMORY:
        slope = steady_growth(accounts, what)
        if slope is not None and slope > BYTES_PER_REQUEST:
            found.append(Leak(what, 1000 * slope, 1000 * BYTES_PER_REQUEST, 1000))
    return found


def steady_growth(accounts: Sequence[Account], what: str) -> float | None:
    """Return by how many bytes a process grew with each request in the later half of accounts.

    None: another process, or too few accounts.
    """
    own = [account for account in accounts if what in account.amounts]
    later = own[len(own) // 2 :]
    if len(later) < FEWEST or len({account.owners[what] for account in later}) > 1:
        return None
    return median(
        (after.amounts[what] - before.amounts[what]) / (after.requests - before.requests)
        for before, after in combinations(later, 2)
    )


def growths(accounts: Sequence[Account]) -> list[tuple[str, int, float]]:
    """Return each amount's growth over the longest life of its owner, with the requests."""
    found = []
    for what in dict.fromkeys(what for account in accounts for what in account.amounts):
        lives = _lives(accounts, what)
        if lives:
            first, last = max(lives, key=lambda own: own[1].requests - own[0].requests)
            growth = last.amounts[what] - first.amounts[what]
            found.append((what, last.requests - first.requests, growth))
    return found


def _lives(accounts: Sequence[Account], what: str) -> list[tuple[Account, Account]]:
    """Return the first and the last account with each owner of an amount, if they are two."""
    by_owner: dict[int, list[Account]] = {}
    for account in accounts:
        if what in account.amounts:
            by_owner.setdefault(account.owners[what], []).append(account)
    return [(own[0], own[-1]) for own in by_owner.values() if len(own) > 1]


def take_account(front_end: int, requests: int, folders: Mapping[str, Path]) -> Account:
    """Return what a server holds now.

    Args:
        folders: the folders whose files are counted, by name. No process owns them. Packed units
            and blocks of KV are not counted: models have so many, and their bytes are bounded.
    """
    own = find_processes(front_end)
    amounts: dict[str, float] = {"front end": read_resident_bytes(front_end)}
    owners = {"front end": front_end}
    if own.engine is not None:
        amounts["engine"], owners["engine"] = read_resident_bytes(own.engine), own.engine
    if own.text is not None:
        # The largest of it and its workers, whose number follows the load. Pages of libraries are
        # left out: how many of them are resident depends on other programs.
        text = (own.text, *list_descendants(own.text))
        amounts["text"], owners["text"] = max(map(read_anonymous_bytes, text)), own.text
    for name, pid in list(owners.items()):
        for what in ("fd", "task"):
            with suppress(OSError):
                key = f"{name}'s {'descriptors' if what == 'fd' else 'threads'}"
                amounts[key] = len(os.listdir(f"/proc/{pid}/{what}"))
                owners[key] = pid
    amounts["processes"], owners["processes"] = len(own.all), front_end
    for name, folder in folders.items():
        key = f"files in {name}"
        amounts[key], owners[key] = _count_files(folder), 0
    return Account(requests, amounts, owners)


def find_kv_excess(cache: Path, bound: int) -> list[str]:
    """Return a failure if the blocks of KV in the cache have more bytes than their bound."""
    held = 0
    for file in _files(cache):
        with suppress(FileNotFoundError):  # it was removed to make room
            held += file.stat().st_size if _is_block(file) else 0
    if held <= bound:
        return []
    return [f"KV on disk has {held / MB:.1f} MB, at most {bound / MB:.1f} are allowed"]


def _count_files(folder: Path) -> int:
    return sum(not (_is_block(file) or file.suffix == ".unit") for file in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    return (Path(at, name) for at, _, names in os.walk(folder) for name in names)


def _is_block(file: Path) -> bool:
    return BlockName.parse(file.name) is not None
