"""Stop rules: when an answer ends, and which part of its text may be shown before that."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from engine.messages import SamplingParams
from engine.text.detokenize import Detokenizer


@dataclass(frozen=True)
class StopResult:
    """The effect of one token: text that may be shown now, and whether it ends the choice."""

    text: str
    finish: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id


class StopRules:
    """The stop rules of one choice, which check its tokens one by one.

    - A stop string ends the choice at the token that completes it. The string is never part of the
      text, even if it spans several tokens. If several are completed, the one that is complete
      first counts; of those complete at the same character, the longest.
    - An end-of-sequence token or stop token ends the choice. Its own text is not shown.
    - Neither applies to the first `params.min_tokens` tokens. A stop string that is completed there
      is ordinary text.
    - The token that completes an answer with a grammar ends the choice with "stop".
    - Token number `max_tokens` ends the choice with "length", unless another rule ends it there.

    Args:
        eos_token_ids: the model's end-of-sequence tokens.
        max_tokens: the most tokens of the choice, by the context length and `params.max_tokens`;
            if it is 0, no token may be pushed.
        detokenizer: turns the tokens into text.
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
        # by their first character: of many strings, few are compared with each character
        self._strings: dict[str, list[str]] = {}
        for stop in filter(None, dict.fromkeys(params.stop)):
            self._strings.setdefault(stop[0], []).append(stop)
        self._detokenizer = detokenizer
        self._withheld = ""  # the end of the text that may become a stop string
        self._finished = False
        self.num_tokens = 0

    def push(self, token: int, *, last: bool = False) -> StopResult:
        """Check the next emitted token. After a result with `finish`, no token may be pushed.

        Args:
            last: whether the token completes the answer, which then ends.
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
            return StopResult(shown, "stop", stop)
        return StopResult(shown)

    def _end(self, text: str, finish: Literal["stop", "length"], reason: int | None) -> StopResult:
        """Return the last result, with all withheld text unless a stop string is completed."""
        self._finished = True
        shown, stop = self._scan(text + self._detokenizer.finish())
        if stop is not None:
            return StopResult(shown, "stop", stop)
        return StopResult(shown + self._withheld, finish, reason)

    def _scan(self, text: str) -> tuple[str, str | None]:
        """Add new text. Return the text that may be shown now, and a completed stop string if any.

        A stop string counts only if it ends within the new text. One that was completed within the
        first `min_tokens` tokens ends before it.
        """
        if not self._strings:
            return text, None
        known, text = len(self._withheld), self._withheld + text
        if self.num_tokens > self._min_tokens:
            ends = [
                (start + len(stop), -len(stop), stop)
                for start, character in enumerate(text)
                for stop in self._strings.get(character, ())
                if start + len(stop) > known and text.startswith(stop, start)
            ]
            if ends:
                end, _, stop = min(ends)
                return text[: end - len(stop)], stop
        split = next(filter(lambda start: self._may_begin(text[start:]), range(len(text))), None)
        split = len(text) if split is None else split
        self._withheld = text[split:]
        return text[:split], None

    def _may_begin(self, end: str) -> bool:
        """Return whether the end of a text may be the start of a stop string."""
        stops = self._strings.get(end[0], ())
        return any(len(stop) > len(end) and stop.startswith(end) for stop in stops)
