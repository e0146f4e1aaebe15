"""What a client of the engine iterates: the answer to one request."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError
from engine.messages import Generate, Tokens

Mail = asyncio.Queue[Tokens | EngineError | None]  # None: the end


class TokenStream(AsyncGenerator[Tokens, None]):
    """The tokens of one request, all choices interleaved, until each has its `finish`.

    The request runs from the start, also before the first `anext`, which a generator function
    could not do. Leaving early in any way (`aclose`, cancellation, being collected) aborts it.
    """

    def __init__(self, mail: Mail, abort: Callable[[], None]) -> None:
        self._mail = mail
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._ended = False

    async def asend(self, _value: None) -> Tokens:
        if self._ended:
            raise StopAsyncIteration
        try:
            event = await self._mail.get()
        except asyncio.CancelledError:
            self._leave()
            raise
        if isinstance(event, Tokens):
            return event
        self._ended = True
        if event is None:
            raise StopAsyncIteration
        raise event

    async def athrow(self, typ: Any, val: Any = None, _tb: Any = None, /) -> Tokens:
        self._leave()
        raise typ if val is None else val

    async def aclose(self) -> None:
        self._leave()

    def __del__(self) -> None:
        if not self._ended:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody serves any more
                self._loop.call_soon_threadsafe(self._abort)

    def _leave(self) -> None:
        if not self._ended:
            self._ended = True
            self._abort()


@dataclass
class Running:
    """A request the engine has: where its tokens go, and how many choices are not finished."""

    message: Generate
    mail: Mail
    num_unfinished: int
    on_start: Callable[[], None] | None  # None: it was called, or nobody asked for it
    is_waiting: bool = True

    def finish_choice(self) -> bool:
        """Count a finished choice; return whether it was the last."""
        self.num_unfinished -= 1
        return self.num_unfinished == 0

    def start(self) -> None:
        """Count the request as running: it takes part in a pass."""
        self.is_waiting = False
        if self.on_start is not None:
            self.on_start()
            self.on_start = None
