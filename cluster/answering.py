"""The answer to a request of another server: its frames, with signs of life between them."""

import asyncio
import contextlib
from array import array
from collections.abc import AsyncGenerator, Callable, Mapping

from cluster.held_pages import HeldPages
from cluster.page_hashes import page_hashes
from cluster.wire import SIGN_SECONDS, Ask, Emitted, Ended, Failure, Progress
from engine.errors import EngineError
from engine.messages import Tokens

Frame = Progress | Emitted | Ended | Failure
# Runs a request, and calls its argument with the number of prompt tokens that are done.
Run = Callable[[Callable[[int], None]], AsyncGenerator[Tokens, None]]


class Observer:
    """The interface of an object that follows one request. Its own methods do nothing."""

    def note_prompt(self, done: int) -> None:
        """Note how many tokens of the prompt are stored."""

    def note_lost(self) -> None:
        """Note that the engine process has died, and that a new one continues the request."""

    def note_generated(self, num_tokens: int) -> None:
        """Count tokens that the engine has sent."""

    def note(self, tokens: Tokens) -> None:
        """Note tokens of the answer."""

    def complete(self) -> None:
        """Note that all choices have finished."""

    def fail(self, error: EngineError) -> None:
        """Note the error that ends the answer."""

    def leave(self) -> None:
        """Note that the answer is read no further; it is the last call."""


# Returns the observer of a request, given the id of the model and the headers of its trace.
Observe = Callable[[str, Ask, Mapping[str, str]], Observer]


def no_observer(_model: str, _ask: Ask, _headers: Mapping[str, str]) -> Observer:
    """Return an observer that ignores everything."""
    return Observer()


async def frames_of(
    run: Run, name: str, *, sign_seconds: float = SIGN_SECONDS
) -> AsyncGenerator[Frame | None, None]:
    """Yield the frames of a request up to `Ended` or `Failure`; None is a sign of life.

    Closing the generator ends the request.

    Args:
        run: runs it. An `EngineError` becomes a `Failure`.
        name: names its task.
        sign_seconds: the longest time without a frame or a sign of life.
    """
    frames: asyncio.Queue[Frame] = asyncio.Queue()

    async def fill() -> None:
        try:
            async with contextlib.aclosing(
                run(lambda done: frames.put_nowait(Progress(done)))
            ) as stream:
                async for tokens in stream:
                    frames.put_nowait(Emitted(tokens))
            frames.put_nowait(Ended())
        except EngineError as error:
            frames.put_nowait(Failure.of(error))

    task = asyncio.create_task(fill(), name=name)
    try:
        while True:
            try:
                async with asyncio.timeout(sign_seconds):
                    frame = await frames.get()
            except TimeoutError:
                yield None
                continue
            yield frame
            if isinstance(frame, Ended | Failure):
                return
    finally:
        task.cancel()
        await asyncio.wait([task])


class AskedTexts:
    """The texts of one request, whose pages the engine holds when it ends.

    Args:
        held: returns the pages that its sender may be told of.
    """

    def __init__(self, ask: Ask, held: Callable[[], HeldPages]) -> None:
        self._prompt, self._held = ask.message.prompt, held
        self._texts = {tail.choice: array("q", tail.ids) for tail in ask.message.emitted}

    def note(self, tokens: Tokens) -> None:
        """Note tokens of a choice, and its pages when it ends."""
        text = self._texts.setdefault(tokens.choice, array("q"))
        if not tokens.is_replayed:
            text.extend(tokens.ids)
        if tokens.finish is not None:
            self._held().add(page_hashes([*self._prompt, *text]))
