"""The tokens with which an answer may continue, so that it matches its grammar and ends in time.

If rules conflict, the grammar has the highest priority; then the token limit, before which the
answer has to be complete; then `min_tokens` and `ignore_eos`, which delay its end; and then
penalties and logit bias.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from engine.sampling.grammar.closing import ClosingPath
from engine.sampling.grammar.grammar import Grammar, Mask

# The CPU time per emitted token that may be spent on what drafts may contain. Ordinary masks take
# 0.1 to 2 ms. Slow ones take up to 17 ms, which for each row of a tree would make others wait.
DRAFT_SECONDS = 0.05
MAX_TRIES = 8  # tokens, the best first, that are checked for whether the answer can be completed


class Constraint:
    """The grammar of one answer, with the tokens that would complete the answer."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._closing = ClosingPath(grammar)
        self._draft_seconds = 0.0  # spent on drafts since the last token was emitted

    def copy(self) -> "Constraint":
        """Return the same constraint before the first token."""
        return Constraint(self.grammar.copy())

    def allowed(self, banned: Sequence[int]) -> Mask:
        """Return the mask of tokens that may come next; banned ones only if there are no others.

        Raises `RequestError` if the grammar is too complex to be followed.
        """
        return _remove_banned(self.grammar.allowed(), banned)

    def allowed_after(self, path: Sequence[int], banned: Sequence[int]) -> Mask | None:
        """Return the mask of tokens that may follow drafted tokens.

        Return None if the drafted tokens do not match the grammar, if no token may follow them, or
        if `DRAFT_SECONDS` are used up. The answer does not depend on it, as on no draft.
        """
        with self._timed() as has_time, self.grammar.trial(path if has_time else ()) as matches:
            mask = self.grammar.mask() if has_time and matches else None
        return None if mask is None else _remove_banned(mask, banned)

    def may_follow(self, path: Sequence[int]) -> bool:
        """Return True if drafted tokens match the grammar and `DRAFT_SECONDS` are not used up."""
        with self._timed() as has_time:
            return has_time and self.grammar.matches(path)

    def forced_after(self, path: Sequence[int]) -> list[int]:
        """Return the tokens that the grammar forces after drafted ones.

        There are none if the drafted tokens do not match, or if `DRAFT_SECONDS` are used up.
        """
        with self._timed() as has_time, self.grammar.trial(path if has_time else ()) as matches:
            return self.grammar.forced() if has_time and matches else []

    @contextmanager
    def _timed(self) -> Iterator[bool]:
        """Add the CPU time of the block to that of drafts, and yield whether there is any left."""
        before = time.thread_time()
        try:
            yield self._draft_seconds < DRAFT_SECONDS
        finally:
            self._draft_seconds += time.thread_time() - before

    def first_closable(
        self, token: int, room: int, banned: Sequence[int], choose: Callable[[Tensor], int]
    ) -> int:
        """Return `token`, or the best other token after which the answer can be completed.

        Args:
            token: the target's choice.
            room: how many tokens may follow it.
            banned: tokens that may be chosen only if the grammar allows no others.
            choose: returns the target's choice among the tokens of a mask [1, V].
        """
        mask: Mask | None = None
        for _ in range(MAX_TRIES):
            if self._closing.can_close_after(token, room):
                return token
            if mask is None:
                mask = self.allowed(banned).copy()
            mask[token] = False
            if not mask.any():
                break
            token = choose(to_tensor([mask]))
        assert self._closing.tokens, "if a token does not fit, closing tokens are known"
        return self._closing.tokens[0]

    def note_emitted(self, token: int, room: int) -> None:
        """Bring the search for closing tokens to its state after `first_closable` gave `token`.

        The search depends on the tokens alone, and not on the others that were tried before.

        Args:
            token: a token that was emitted, and is consumed next.
            room: how many tokens may follow it.
        """
        self._closing.can_close_after(token, room)

    def emit(self, token: int) -> bool:
        """Consume an allowed token. Return True if it completes the answer.

        Raises `RequestError` if the grammar is too complex to be followed.
        """
        self._draft_seconds = 0.0
        self._closing.advance(token)
        self.grammar.consume(token)
        return self.grammar.is_complete()


def to_tensor(masks: Sequence[Mask]) -> Tensor:
    """Return the masks of several rows as a tensor, [R, V] bool."""
    return torch.from_numpy(np.stack(masks))


def _remove_banned(mask: Mask, banned: Sequence[int]) -> Mask:
    """Return the mask without banned tokens, or the mask itself if it has no others."""
    if not banned:
        return mask
    others = mask.copy()
    others[list(banned)] = False
    return others if others.any() else mask
