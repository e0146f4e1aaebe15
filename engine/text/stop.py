"""When an answer ends, and which of its text may be shown before that is known."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from engine.messages import SamplingParams
from engine.text.detokenize import Detokenizer


@dataclass(frozen=True)
class Verdict:
    """What one token did: text that is now safe to show, and whether the choice ends with it."""

    text: str
    finish: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id


class StopRules:
    """The stop rules of one choice, fed token by token.

    - A stop string ends the choice with the token that completes it. It is never part of the text,
      however it was cut into tokens. Of several, the one complete first wins; of those complete at
      the same character, the longest.
    - An end-of-sequence or stop token ends it; its own text is not shown.
    - None of these holds for the first `params.min_tokens` tokens; a stop string completed there
      is plain text.
    - The last token of a complete answer ends it with "stop", however many there were.
    - Token number `max_tokens` ends it with "length", unless it also completes a stop.

    `max_tokens` is what the context leaves, `params.max_tokens` included; where it is 0, nothing
    is pushed.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        eos_token_ids: Collection[int],
        max_tokens: int,
        detokenizer: Detokenizer,
    ) -> None:
        assert max_tokens >= 0, "the prompt is longer than the context"
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._eos_token_ids = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._min_tokens = params.min_tokens
        self._max_tokens = max_tokens
        self._strings = [stop for stop in dict.fromkeys(params.stop) if stop]
        self._detokenizer = detokenizer
        self._held = ""  # the longest end of the text that may become a stop string
        self._finished = False
        self.num_tokens = 0

    def push(self, token: int, *, last: bool = False) -> Verdict:
        """Take the next emitted token; `last`: the answer is complete with it, and so ends.

        After a verdict with `finish` nothing may be pushed.
        """
        assert not self._finished, "the choice has ended"
        self.num_tokens += 1
        if self.num_tokens > self._min_tokens:
            if token in self._stop_token_ids:
                return self._end("", "stop", token)
            if token in self._eos_token_ids:
                return self._end("", "stop", None)
        text = self._detokenizer.push((token,))
        if last:
            return self._end(text, "stop", None)
        if self.num_tokens >= self._max_tokens:
            return self._end(text, "length", None)
        shown, stop = self._scan(text)
        if stop is not None:
            self._finished = True
            return Verdict(shown, "stop", stop)
        return Verdict(shown)

    def _end(self, text: str, finish: Literal["stop", "length"], reason: int | None) -> Verdict:
        """The last verdict: nothing is held back any more, unless it completes a stop string."""
        self._finished = True
        shown, stop = self._scan(text + self._detokenizer.finish())
        if stop is not None:
            return Verdict(shown, "stop", stop)
        return Verdict(shown + self._held, finish, reason)

    def _scan(self, text: str) -> tuple[str, str | None]:
        """Return what may be shown once `text` has arrived, and the stop string that it completes.

        A stop string counts only if it ends in the new text, behind what was held back.
        """
        if not self._strings:
            return text, None
        known, text = len(self._held), self._held + text
        if self.num_tokens > self._min_tokens:
            found = ((text.find(s, max(known - len(s) + 1, 0)), len(s), s) for s in self._strings)
            ends = [(first + size, -size, stop) for first, size, stop in found if first >= 0]
            if ends:
                end, _, stop = min(ends)
                return text[: end - len(stop)], stop
        border = len(text) - max(_num_begun(text, stop) for stop in self._strings)
        self._held = text[border:]
        return text[:border], None


def _num_begun(text: str, stop: str) -> int:
    """Return how many characters at the end of a text begin a stop string, but are not all of it.

    What is tried in vain is not held back, so over an answer there are few tries for a character.
    """
    tries = range(min(len(text), len(stop) - 1), 0, -1)
    return next((count for count in tries if text.endswith(stop[:count])), 0)
