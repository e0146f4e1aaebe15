"""Packed units that were made again from the checkpoint, but could not be written to the disk."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

RETRY_S = 60.0  # until the file of such a unit is written again, if a read comes then


@dataclass
class _Unit:
    damage: str  # of its file, with the path
    reason: str  # why the file could not be written
    retry_at: float


class UnwrittenUnits:
    """The units whose files are damaged and cannot be replaced, because of a full disk for example.

    The bytes of the last one that was made are kept, as its pieces are read one after the other.
    Callers hold a lock, except for `damage`.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._units: dict[int, _Unit] = {}
        self._last: tuple[int, Tensor] | None = None

    def damage(self, index: int) -> str | None:
        """Return what is wrong with the file of a unit; None if the file is used."""
        unit = self._units.get(index)
        return None if unit is None else unit.damage

    def reason(self, index: int) -> str:
        """Return why the file of a unit could not be written."""
        return self._units[index].reason

    def must_wait(self, index: int) -> bool:
        """Return whether it is too early to write the file of a unit again."""
        unit = self._units.get(index)
        return unit is not None and self._clock() < unit.retry_at

    def add(self, index: int, damage: str, reason: str) -> bool:
        """Note that the file of a unit could not be written. Return whether that is new."""
        is_new = index not in self._units
        self._units[index] = _Unit(damage, reason, self._clock() + RETRY_S)
        return is_new

    def keep(self, index: int, made: Tensor) -> None:
        """Keep the bytes of a unit in memory, in place of the unit that was kept before."""
        self._last = index, made

    def made(self, index: int) -> Tensor | None:
        """Return the bytes of a unit if they are kept."""
        return self._last[1] if self._last is not None and self._last[0] == index else None

    def remove(self, index: int) -> bool:
        """Forget a unit whose file was written. Return whether there was one."""
        if self._last is not None and self._last[0] == index:
            self._last = None
        return self._units.pop(index, None) is not None
