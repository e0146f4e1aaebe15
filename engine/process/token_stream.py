"""The stream of tokens of one request, and the request while it is running."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Any

from engine.errors import EngineError
from engine.messages import Generate, Tokens

EventQueue = asyncio.Queue[Tokens | EngineError | None]  # None: the end of the stream


class TokenStream(AsyncGenerator[Tokens, None]):
    """The tokens of one request, with all choices interleaved, until each has its `finish`.

    The request also runs before the first `anext`, unlike the body of a generator function. Ending
    the iteration early in any way (`aclose`, cancellation, garbage collection) aborts it.

    Args:
        events: receives the tokens, and then an error or None.
        abort: ends the request in the engine.
    """

    def __init__(self, events: EventQueue, abort: Callable[[], None]) -> None:
        self._events = events
        self._abort = abort
        self._loop = asyncio.get_running_loop()
        self._ended = False

    async def asend(self, _value: None) -> Tokens:
        if self._ended:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            self._end_early()
            raise
        if isinstance(event, Tokens):
            return event
        self._ended = True
        if event is None:
            raise StopAsyncIteration
        raise event

    async def athrow(self, typ: Any, val: Any = None, _tb: Any = None, /) -> Tokens:
        self._end_early()
        raise typ if val is None else val

    async def aclose(self) -> None:
        self._end_early()

    def __del__(self) -> None:
        if not self._ended:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and so is the engine
                self._loop.call_soon_threadsafe(self._abort)

    def _end_early(self) -> None:
        if not self._ended:
            self._ended = True
            self._abort()


@dataclass
class RunningRequest:
    """A request that the engine has, with the queue for its tokens."""

    message: Generate
    events: EventQueue
    num_unfinished: int  # choices without a `finish`
    on_prompt: Callable[[int], None] | None  # gets the number of prompt tokens that are done
    is_waiting: bool = True
    has_tokens: bool = False

    def finish_choice(self) -> bool:
        """Count a finished choice, and return whether it was the last."""
        self.num_unfinished -= 1
        return self.num_unfinished == 0

    def note_prompt(self, done: int) -> None:
        """Record that the request takes part in a pass, with `done` tokens of its prompt stored."""
        self.is_waiting = False
        if self.on_prompt is not None:
            self.on_prompt(done)

    def deliver(self, tokens: Tokens) -> None:
        """Add tokens to the stream. With the first ones, the prompt is complete."""
        if not self.has_tokens:
            self.has_tokens = True
            self.note_prompt(len(self.message.prompt))
        self.events.put_nowait(tokens)
