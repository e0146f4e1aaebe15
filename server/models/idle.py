"""The time in which no request holds a model, after which its memory is given back."""

import asyncio
from collections.abc import Callable

from server.models.loaded_model import LoadedModel


class IdleTimer:
    """Calls a function when no request has held the model in memory for its `idle_unload` seconds.

    What borrows no model, such as a listing, a health check or a scrape of the metrics, does not
    count as a request.
    """

    def __init__(self, is_over: Callable[[LoadedModel], None]) -> None:
        """Create a timer that calls `is_over(model)`, in the event loop, at the end of the time."""
        self._is_over = is_over
        self._timer: asyncio.TimerHandle | None = None

    @property
    def seconds_left(self) -> float | None:
        """The seconds until the model is unloaded; None while it is held or never unloaded."""
        if self._timer is None:
            return None
        return max(0.0, self._timer.when() - asyncio.get_running_loop().time())

    def begin(self, model: LoadedModel) -> None:
        """Begin the time anew, because the last request has given the model back."""
        self.end()
        if model.entry.idle_unload is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(model.entry.idle_unload, self._end_of, model)

    def end(self) -> None:
        """Stop waiting, because a request holds the model or the model changes."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end_of(self, model: LoadedModel) -> None:
        self._timer = None
        self._is_over(model)
