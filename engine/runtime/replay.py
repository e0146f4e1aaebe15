"""The replay of tokens that were emitted earlier for a choice, by another engine or request.

Output follows from weights, prompt, parameters and seed, so an answer can go on in another engine.
What a live step does after it has chosen a token is done here for each token of the tail, so that
penalties, stop rules, grammar, thinking budget and text are in the same state as in the engine that
emitted it. Its KV is computed later, in the passes of the prompt.

A token takes 4 to 30 microseconds, so a tail of 30,000 tokens up to a second. Other requests do not
wait for it: it is replayed in slices, between passes and while a pass waits for weights.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator

from engine.errors import PassFailed, RequestError
from engine.messages import CONTINUED, Tail
from engine.sequences.sequence import Request, TokenSequence
from engine.text.stop import StopRules

SLICE_SECONDS = 0.05  # at once


class Replays:
    """The requests whose tails are being replayed. They take turns, a slice each."""

    def __init__(self, on_slice: Callable[[], None]) -> None:
        """Create a queue without requests. `on_slice` is called before each slice."""
        self._on_slice = on_slice
        self._queue: deque[tuple[Request, Iterator[None]]] = deque()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, request: Request, new_rules: Callable[[], StopRules]) -> None:
        """Append a request whose message has tails. `new_rules` returns the rules of a choice."""
        self._queue.append((request, _replay(request, new_rules)))

    def drop_cancelled(self) -> list[Request]:
        """Remove and return the requests whose clients have left."""
        dropped = [request for request, _ in self._queue if request.cancelled.is_set()]
        self._queue = deque(own for own in self._queue if own[0] not in dropped)
        return dropped

    def run(self, seconds: float) -> Iterator[tuple[Request, RequestError | None]]:
        """Replay tokens for `seconds`, and yield each request that is complete or cannot go on.

        The sequences of a complete one are in its `resumed`. With the error of one that cannot go
        on, it says why.
        """
        if not self._queue:
            return
        self._on_slice()
        until = time.monotonic() + seconds
        while self._queue:
            request, tokens = self._queue.popleft()
            try:
                for _ in tokens:
                    if time.monotonic() >= until:
                        self._queue.append((request, tokens))
                        return
            except RequestError as error:
                yield request, error
            else:
                yield request, None


def _replay(request: Request, new_rules: Callable[[], StopRules]) -> Iterator[None]:
    """Append a sequence for each tail to the request's `resumed`, and yield after each token.

    Raises `RequestError` if an answer cannot begin with a tail, or go on after it.
    """
    for tail in request.message.emitted:
        sequence = TokenSequence(request, tail.choice, new_rules())
        yield from _replay_tail(sequence, tail)
        request.resumed.append(sequence)
        yield


def _replay_tail(sequence: TokenSequence, tail: Tail) -> Iterator[None]:
    """Bring a new sequence to its state after the tokens of its tail, and yield after each.

    If they have not been read, they are sent as a replay before the first new token, and they may
    end the sequence, which then has a `finish`.

    Raises `RequestError` if the answer cannot begin with them, or go on after them.
    """
    for number, token in enumerate(tail.ids, 1):
        if sequence.constraint is not None:
            room = sequence.num_left(len(sequence.tokens)) - 1
            sequence.constraint.note_emitted(token, room)
        elif (forced := sequence.forced()) and forced[0] != token:
            reason = f"is {token}, but the thinking budget forces {forced[0]}"
            raise _refusal(tail, number, reason)
        try:
            is_over = sequence.emit(token, source=CONTINUED)
        except RequestError as error:
            raise _refusal(tail, number, f"does not match the grammar ({error})") from error
        except PassFailed as error:  # no pass is under way that could fail
            raise _refusal(tail, number, f"cannot be read ({error})") from error
        if is_over and (tail.is_read or number < len(tail.ids)):
            raise _refusal(tail, number, f"ends the answer ({sequence.finish})")
        yield
    sequence.resume(tail)


def _refusal(tail: Tail, number: int, reason: str) -> RequestError:
    return RequestError(
        f"Choice {tail.choice} cannot go on after the given tokens: token {number} of "
        f"{len(tail.ids)} {reason}. Give the tokens that an answer to this same request had, from "
        "the first one on.",
        "invalid_value",
        "continue_tokens",
    )
