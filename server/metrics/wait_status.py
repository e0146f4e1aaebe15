"""What a request waits for until the engine runs it; keep-alive comments tell it."""

import time
from collections.abc import Callable


class Wait:
    """Kept up to date by whoever makes the request wait."""

    def __init__(self) -> None:
        self._arrived = time.perf_counter()
        self._ran: float | None = None
        self._tell: Callable[[], str] = lambda: "waiting"

    def for_(self, tell: Callable[[], str]) -> None:
        """From now on it waits for this; asked for each comment anew."""
        self._tell = tell

    def over(self) -> None:
        """The engine runs it; told more than once, the first time counts."""
        if self._ran is None:
            self._ran = time.perf_counter()

    @property
    def is_over(self) -> bool:
        return self._ran is not None

    @property
    def milliseconds(self) -> int:
        """From its arrival until it ran, or until now."""
        return round(1e3 * ((self._ran or time.perf_counter()) - self._arrived))

    def __str__(self) -> str:
        return "running" if self.is_over else self._tell()


def in_line(what: str, position: int) -> str:
    """Words for a place in a queue, counted from 1; 0: it is not (yet) in the queue."""
    return f"{what}, position {position}" if position else what
