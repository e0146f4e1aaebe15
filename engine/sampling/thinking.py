"""The thinking budget: once it is used up, the tokens that end the thinking part are forced.

Which token is forced depends only on the tokens of the answer, so drafts have no influence on it.
Marks are found in the bytes of the tokens, because a model may split a mark in several ways.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import accumulate

from engine.messages import ThinkingBudget
from engine.sampling.grammar.constraint import Constraint

BLANKS = b" \t\n\r"
MAX_DELAY = 3  # tokens beyond the budget that may complete a character; UTF-8 needs at most three

Spelling = Callable[[int], bytes]  # returns the bytes that a token adds to the text


class Phase(Enum):
    """The part of an answer that its last token belongs to."""

    BEFORE = "before"  # a thinking part may follow
    INSIDE = "inside"
    OVER = "over"  # no thinking part follows


class ThinkingRule:
    """The budget of one request, with the spelling of its marks and closing tokens."""

    def __init__(self, budget: ThinkingBudget, spelling: Spelling) -> None:
        self.budget = budget
        self.spelling = spelling
        self.end = budget.end.encode()
        self._begin = budget.begin.encode().lstrip(BLANKS)
        # For each closing sequence, the text of its first tokens: of one token, of two, and so on.
        self._texts = [list(accumulate(map(spelling, tokens))) for tokens in budget.closings]
        longest = max(len(texts[-1]) for texts in self._texts)
        self._num_kept = max(len(self._begin), len(self.end)) + longest

    def start(self) -> "ThinkingState":
        """Return the state before the answer's first token."""
        if self._begin and not self.budget.is_begun:
            return ThinkingState(self, Phase.BEFORE)
        return self.look_for_end(ThinkingState(self, Phase.INSIDE))

    def look_for_begin(self, state: "ThinkingState") -> "ThinkingState":
        """Return the state after text before a thinking part, which may begin one."""
        if self.budget.repeats:
            _, mark, rest = state.text.partition(self._begin)
            kept = state.text[-self._num_kept :]
        else:
            kept = state.text.lstrip(BLANKS)
            mark, rest = kept[: len(self._begin)], kept[len(self._begin) :]
            if not self._begin.startswith(mark):
                return replace(state, phase=Phase.OVER)
        if mark != self._begin:
            return replace(state, text=kept)
        return self.look_for_end(replace(state, phase=Phase.INSIDE, text=rest))

    def look_for_end(self, state: "ThinkingState") -> "ThinkingState":
        """Return the state after text of a thinking part, which may end it or use up the budget."""
        _, mark, rest = state.text.partition(self.end)
        if mark:
            return self.leave(replace(state, text=rest))
        excess = state.num_used - self.budget.tokens
        is_due = excess >= MAX_DELAY or (excess >= 0 and not _is_cut(state.text))
        closing = self._closing_after(state) if is_due else ()
        return replace(state, text=state.text[-self._num_kept :], closing=closing)

    def leave(self, state: "ThinkingState") -> "ThinkingState":
        """Return the state after the end of a thinking part; its text is what follows the end."""
        if not (self.budget.repeats and self._begin):
            return replace(state, phase=Phase.OVER, closing=())
        return self.look_for_begin(replace(state, phase=Phase.BEFORE, closing=()))

    def _closing_after(self, state: "ThinkingState") -> tuple[int, ...]:
        """Return the closing tokens, without the first ones if the text ends with these already.

        The text may also end with them without their leading blanks.
        """
        index = min(state.num_closed, len(self._texts) - 1)
        tokens, texts = self.budget.closings[index], self._texts[index]
        for length in range(len(tokens) - 1, 0, -1):
            written = texts[length - 1]
            for own in (written, written.lstrip(BLANKS)):
                if own and state.text.endswith(own):
                    return tokens[length:]
        return tokens


@dataclass(frozen=True, slots=True)
class ThinkingState:
    """The state of a thinking budget after some tokens of an answer.

    Args:
        rule: the budget.
        phase: the part of the answer that the last token belongs to.
        text: the end of the text so far, as far as marks have to be found in it.
        num_used: the tokens of the thinking part, without those that were forced, and without
            blanks in the first token after the opening mark.
        num_closed: how many times the thinking part was closed by forced tokens.
        closing: the tokens that must follow now; empty if any token may.
    """

    rule: ThinkingRule
    phase: Phase
    text: bytes = b""
    num_used: int = 0
    num_closed: int = 0
    closing: tuple[int, ...] = ()

    def after(self, token: int) -> "ThinkingState":
        """Return the state after one more token.

        A token other than the forced one counts as thinking: the grammar or the token limit of the
        answer, which come first, may have chosen it.
        """
        if self.phase is Phase.OVER:
            return self
        rule, own = self.rule, self.rule.spelling(token)
        state = replace(self, text=self.text + own)
        if self.phase is Phase.BEFORE:
            return rule.look_for_begin(state)
        if not self.closing or self.closing[0] != token:
            is_line_end = not self.text and own.isspace()  # it belongs to the opening mark
            return rule.look_for_end(replace(state, num_used=self.num_used + (not is_line_end)))
        if len(self.closing) > 1:
            return replace(state, closing=self.closing[1:])
        return rule.leave(replace(state, text=b"", num_closed=self.num_closed + 1))

    @property
    def num_free(self) -> int:
        """Return how many tokens follow at least before one is forced."""
        if self.phase is Phase.OVER:
            return sys.maxsize
        return max(self.rule.budget.tokens - self.num_used, 0)


def forced_tokens(
    state: ThinkingState | None, constraint: Constraint | None, path: Sequence[int] = ()
) -> tuple[int, ...]:
    """Return the tokens that must follow a path, as far as the grammar allows them.

    Args:
        state: the state after all emitted tokens; None without a budget.
        constraint: the grammar after the same tokens; None without one.
        path: drafted tokens after them.
    """
    if state is None or state.num_free > len(path):
        return ()
    for token in path:
        state = state.after(token)
    if not state.closing or constraint is None:
        return state.closing
    num_matching = constraint.grammar.num_matching([*path, *state.closing])
    return state.closing[: max(num_matching - len(path), 0)]


def _is_cut(text: bytes) -> bool:
    """Return whether a text ends within a character of UTF-8."""
    for back, byte in enumerate(reversed(text[-3:]), 1):
        if byte >= 0xC0:  # the first byte of a character of two, three or four bytes
            return back < (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
        if byte < 0x80:
            return False
    return False
