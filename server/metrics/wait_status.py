"""What a request waits for, and how far its prompt is, as keep-alive signals report it."""

import time
from collections.abc import Callable

MOST_LOSSES = 16  # whose times are kept
RESTARTING = "engine restarting"


class Wait:
    """The wait of one request, from its arrival until the engine runs it."""

    def __init__(self) -> None:
        self._arrived = time.perf_counter()
        self.ended: float | None = None  # when the engine began to run it; `time.perf_counter`
        self.losses: list[
            tuple[float, float | None]
        ] = []  # when an engine died, and another went on
        self._reason: Callable[[], str] = lambda: "waiting"
        self._prompt_left = ""  # how far the prompt is, while it runs
        self.is_lost = False  # whether the engine died that ran it, and it waits for the next one
        self._when_lost: Callable[[], None] = lambda: None

    def set_reason(self, reason: Callable[[], str]) -> None:
        """Set the function that returns the reason, which is called anew for each comment."""
        self._reason = reason

    def end(self) -> None:
        """End the wait, when the engine runs the request; only the first call counts."""
        if self.ended is None:
            self.ended = time.perf_counter()

    def note_prompt(self, done: int, total: int) -> None:
        """Note that the engine runs the request, and how many tokens of its prompts are done."""
        self.end()
        if self.is_lost:
            self.is_lost = False
            self.losses[-1] = (self.losses[-1][0], time.perf_counter())
        self._prompt_left = f"prompt {done} of {total}" if done < total else ""

    def note_lost(self) -> None:
        """Note that the engine has died, and that the request goes on when it is restarted."""
        if not self.is_lost:
            self.is_lost = True
            self.losses = [*self.losses[-MOST_LOSSES + 1 :], (time.perf_counter(), None)]
            self._when_lost()

    def call_when_lost(self, function: Callable[[], None]) -> None:
        """Set the function that is called each time that an engine dies that ran the request."""
        self._when_lost = function

    @property
    def is_over(self) -> bool:
        """Return whether the engine has begun to run the request."""
        return self.ended is not None

    @property
    def milliseconds(self) -> int:
        """Return the length of the wait so far."""
        return round(1e3 * ((self.ended or time.perf_counter()) - self._arrived))

    def __str__(self) -> str:
        if self.is_lost:
            return RESTARTING
        return self._prompt_left or "running" if self.is_over else self._reason()


def in_line(what: str, position: int) -> str:
    """Return `what` with a position in a queue, counted from 1; 0 means not in the queue."""
    return f"{what}, position {position}" if position else what
