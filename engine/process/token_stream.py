"""The stream of tokens of one request, and the request while it is running."""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncGenerator, Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from engine.errors import EngineError
from engine.messages import Generate, Stats, Tail, Tokens
from engine.process.suspects import fingerprint_of

MAX_UNREAD = 32  # messages of a request, after which traces come without rejected nodes

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


class RunningRequest:
    """A request that was accepted, with the queue for its tokens and all that it has sent so far.

    It outlives the process that runs it: another one goes on from what it has sent.
    """

    def __init__(
        self,
        message: Generate,
        events: EventQueue,
        on_prompt: Callable[[int], None] | None,
        on_lost: Callable[[], None] | None,
        on_tokens: Callable[[int], None] | None,
        max_tokens: int,
    ) -> None:
        """Create a request that has sent nothing.

        Args:
            on_prompt: is called with the number of prompt tokens that are done.
            on_lost: is called when its process has died and it waits for another one.
            on_tokens: is called with the number of new tokens when some arrive.
            max_tokens: the most tokens that may follow its prompt, by the process it began in.
        """
        self.message = replace(message, emitted=())  # in `_emitted` they need a fifth of the memory
        self.events = events
        self.is_waiting = True  # no pass has run any of it
        self.is_sent = False  # whether the current process has it
        self.is_lost = False  # whether the process that had it has died, and none has it yet
        self.has_run = False  # whether a pass of the current process has run some of it
        self.num_new = 0  # tokens since its process died last
        self.num_prompt_left = len(message.prompt)  # tokens of it that no pass has run yet
        self.name = message.request_id  # in the current process
        self.engine = ""  # the fingerprint of the engine that has run it last
        self._on_prompt = on_prompt
        self._on_lost = on_lost
        self._on_tokens = on_tokens
        self._max_tokens = max_tokens
        self._has_tokens = False  # of the current process
        self._num_sent = 0
        self._emitted = {choice: array("q") for choice in range(message.n)}  # not of finished ones
        if message.emitted:  # choices without a tail have ended
            self._emitted = {tail.choice: array("q", tail.ids) for tail in message.emitted}
        # Those that need a replay.
        self._unread = {tail.choice for tail in message.emitted if not tail.is_read}
        self._stats: dict[int, Stats] = {
            tail.choice: tail.stats for tail in message.emitted if tail.stats is not None
        }

    @cached_property
    def fingerprint(self) -> Hashable:
        """The value by which repetitions of the request are recognised."""
        return fingerprint_of(self.message)

    @property
    def num_unfinished(self) -> int:
        """The number of choices without a finish."""
        return len(self._emitted)

    @property
    def emitted(self) -> Mapping[int, Sequence[int]]:
        """The tokens so far of each choice that has not finished."""
        return self._emitted

    def is_unread(self, choice: int) -> bool:
        """Return whether the front end waits for a replay of the first tokens of a choice."""
        return choice in self._unread

    @property
    def num_tokens(self) -> int:
        """The number of tokens that a new process has to run before it goes on."""
        return len(self.message.prompt) + sum(map(len, self._emitted.values()))

    @property
    def has_emitted(self) -> bool:
        """Whether any choice has a token."""
        return self.num_unfinished < self.message.n or any(self._emitted.values())

    def can_run_on(self, fingerprint: str) -> bool:
        """Return whether an engine with this fingerprint can run the request, or go on with it."""
        return self.engine in ("", fingerprint) or not self.has_emitted

    def next_message(self, fingerprint: str) -> Generate:
        """Return the message for the process that runs the request next, and count it as sent.

        It has an id of its own, so that no message of an earlier run is taken for one of this run.

        Args:
            fingerprint: that of the process's engine.
        """
        self.engine = fingerprint
        self.is_sent, self.is_lost = True, False
        self.has_run = self._has_tokens = False
        self._num_sent += 1
        if self._num_sent > 1:
            self.name = f"{self.message.request_id}.{self._num_sent}"
        if not self.has_emitted:
            return replace(self.message, request_id=self.name)
        params = self.message.params
        if params.max_tokens is None:  # the next process may have another number of KV pages
            params = replace(params, max_tokens=self._max_tokens)
        tails = tuple(
            Tail(choice, tuple(ids), self._stats.get(choice), is_read=choice not in self._unread)
            for choice, ids in self._emitted.items()
        )
        return replace(self.message, request_id=self.name, params=params, emitted=tails)

    def withdraw(self) -> None:
        """Note that the process does not have the request any more, although it lives."""
        self.is_sent = False

    def lose(self) -> None:
        """Note that the process has died that had the request."""
        self.is_sent, self.is_lost, self.num_new = False, True, 0
        self.num_prompt_left = len(self.message.prompt)
        if self._on_lost is not None:
            self._on_lost()

    def note_prompt(self, done: int) -> None:
        """Record that the request takes part in a pass, with `done` tokens of its prompt stored."""
        self.is_waiting, self.has_run = False, True
        self.num_prompt_left = len(self.message.prompt) - done
        if self._on_prompt is not None:
            self._on_prompt(done)

    def deliver(self, tokens: Tokens) -> None:
        """Add tokens to the stream. With the first ones, the prompt is complete."""
        if not self._has_tokens:
            self._has_tokens = True
            self.note_prompt(len(self.message.prompt))
        self._unread.discard(tokens.choice)
        if not tokens.is_replayed:
            self.num_new += len(tokens.ids)
            if self._on_tokens is not None:
                self._on_tokens(len(tokens.ids))
        if tokens.finish is not None:
            del self._emitted[tokens.choice]
        elif not tokens.is_replayed:
            self._emitted[tokens.choice].extend(tokens.ids)
            if tokens.stats is not None:
                self._stats[tokens.choice] = tokens.stats
        if tokens.traces and self.events.qsize() >= MAX_UNREAD:  # the client reads slowly
            traces = tuple(trace.without_rejected() for trace in tokens.traces)
            tokens = replace(tokens, traces=traces)
        self.events.put_nowait(tokens)
