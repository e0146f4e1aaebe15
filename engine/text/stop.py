"""Stop rules: when an answer ends, and which part of its text may be shown before that."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from typing import Literal

from engine.messages import AnswerFormat, SamplingParams
from engine.parsing.parser import Parser
from engine.parsing.selection import formats_of
from engine.text.detokenize import Detokenizer
from engine.text.stop_strings import StopStrings


@dataclass(frozen=True)
class StopResult:
    """The effect of one token: text that may be shown now, and whether it ends the choice."""

    text: str
    finish: Literal["stop", "length"] | None = None
    stop_reason: str | int | None = None  # the stop string or stop token id
    lookahead: str = ""  # text after a stop, as in `Tokens`


class StopRules:
    """The stop rules of one choice, which check its tokens one by one.

    - A stop string ends the choice at the token that completes it, or at the token that makes
      certain that it is content (see `StopStrings`). The string is never part of the text, even if
      it spans several tokens.
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
        answer_format: how the answer is parsed; None if all its text is content.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        eos_token_ids: Collection[int],
        max_tokens: int,
        detokenizer: Detokenizer,
        answer_format: AnswerFormat | None = None,
    ) -> None:
        assert max_tokens >= 0, "the prompt is longer than the context"
        self._stop_token_ids = frozenset(params.stop_token_ids)
        self._eos_token_ids = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._min_tokens = params.min_tokens
        self._max_tokens = max_tokens
        new_parser = None if answer_format is None else partial(_new_parser, answer_format)
        self._stop_strings = StopStrings(params.stop, new_parser)
        self._detokenizer = detokenizer
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
        return self._scan(text)

    def _end(self, text: str, finish: Literal["stop", "length"], reason: int | None) -> StopResult:
        """Return the last result, with all withheld text unless a stop string is completed."""
        self._finished = True
        return self._scan(text, finish, reason)

    def _scan(
        self,
        text: str,
        finish: Literal["stop", "length"] | None = None,
        reason: int | None = None,
    ) -> StopResult:
        """Add new text, and return the result of its token unless a stop string is completed."""
        scanned = self._stop_strings.scan(
            text, is_counted=self.num_tokens > self._min_tokens, is_last=finish is not None
        )
        if scanned.stop is None:
            return StopResult(scanned.shown, finish, reason)
        self._finished = True
        return StopResult(scanned.shown, "stop", scanned.stop, scanned.lookahead)


def _new_parser(answer: AnswerFormat) -> Parser:
    """Return the parser of one answer, the same that the front end reads the answer with."""
    return formats_of("", answer.calls, answer.reasoning).parser(answer.tools, answer.before)
