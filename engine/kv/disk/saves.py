"""Idle KV is written to the disk while no request runs, a block at a time."""

from typing import TYPE_CHECKING

from engine.kv_disk_stats import KVDiskStats

if TYPE_CHECKING:  # it imports torch, which the fake engine of tests does not need
    from engine.kv.disk_cache import DiskCache

WAIT_S = 0.02  # until the disk may have taken a block


class IdleSaves:
    """What the loop of the engine process does for the KV on disk when nothing else is to be done.

    A request does not interrupt `run`, which copies one block.

    Args:
        cache: the KV cache; None: nothing is ever done.
    """

    def __init__(self, cache: "DiskCache | None") -> None:
        self._cache = cache

    def seconds_until_due(self) -> float | None:
        """Return the seconds until `run` or `take_report` may do something; None if never."""
        cache = self._cache
        if cache is None or cache.disk is None:
            return None
        if cache.has_unsaved:
            return 0.0 if cache.can_save else WAIT_S
        return WAIT_S if cache.disk.is_writing else None

    def run(self) -> bool:
        """Queue one block to be written if that can be done now. Return whether it was."""
        if self._cache is None or not self._cache.has_unsaved or not self._cache.can_save:
            return False
        self._cache.save_next()
        return True

    def take_report(self) -> KVDiskStats | None:
        """Return the figures of the disk since the last report; None if nothing has changed.

        While blocks are being written, there is none.
        """
        if self._cache is None or self._cache.disk is None or self._cache.disk.is_writing:
            return None
        return self._cache.disk.take_report()
