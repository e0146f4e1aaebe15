"""The limit of pieces that are in a copy stream at once.

A device copies in the order in which copies were launched, also those of other streams. A draft
step's inputs would wait for a whole layer if it were copied at once. So a thread launches pieces,
and only few of them ahead of the device.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams and events.

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch

FEWEST = 2  # one is copied, and the next one waits
MOST = 16  # of 8 MiB: 5 ms at 25 GB/s, as long as another thread may hold the interpreter's lock
IN_TIME = 512  # pieces in a row that were launched in time, after which the limit is lowered


class CopyWindow:
    """A limit of the pieces in a copy stream. One thread launches them.

    If the stream has run out of pieces before the thread launches the next one, the limit is
    raised, because the link must not wait for a thread.
    """

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.limit = FEWEST
        self._stream = stream
        self._launched: deque[torch.cuda.Event] = deque()  # after each piece, in order
        self._unused: list[torch.cuda.Event] = []
        self._in_time = 0  # pieces since the limit was changed

    @contextmanager
    def piece(self, *, is_first: bool) -> Iterator[None]:
        """Wait until there is room for a piece, and enter a block that launches it.

        Args:
            is_first: whether it begins a unit. Then the stream may be empty because no slot was
                free.
        """
        while len(self._launched) >= self.limit:
            event = self._launched.popleft()
            event.synchronize()
            self._unused.append(event)
        if not is_first and self._launched:
            self._adapt(is_late=self._launched[-1].query())
        yield
        event = self._unused.pop() if self._unused else torch.cuda.Event(blocking=True)
        event.record(self._stream)
        self._launched.append(event)

    def _adapt(self, *, is_late: bool) -> None:
        self._in_time = 0 if is_late else self._in_time + 1
        if is_late:
            self.limit = min(self.limit + 1, MOST)
        elif self._in_time >= IN_TIME:
            self.limit, self._in_time = max(self.limit - 1, FEWEST), 0
