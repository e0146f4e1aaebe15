"""The tokens an answer may continue with, so that it matches its grammar and ends in time.

Where rules collide the grammar goes first; then the limit of tokens, by which the answer has to be
complete; then `min_tokens` and `ignore_eos`, which delay its end; then penalties and logit bias.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.sampling.grammar.closing import Closing
from engine.sampling.grammar.grammar import Grammar, Mask

TRIES = 8  # tokens, the best first, for which it is checked whether the answer can be completed


class Constraint:
    """One answer's grammar, and the way to the answer's end."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._closing = Closing(grammar)

    def copy(self) -> "Constraint":
        """Return the same constraint before the first token."""
        return Constraint(self.grammar.copy())

    def allowed(self, banned: Sequence[int]) -> Mask:
        """Return the tokens that may come next, banned ones only if there are no others.

        Raises `RequestError`.
        """
        return _without(self.grammar.allowed(), banned)

    def allowed_after(self, path: Sequence[int], banned: Sequence[int]) -> Mask | None:
        """Return the same after drafted tokens; None if they do not match or nothing may follow."""
        with self.grammar.trial(path) as matches:
            mask = self.grammar.mask() if matches else None
        return None if mask is None else _without(mask, banned)

    def first_closable(
        self, token: int, room: int, banned: Sequence[int], choose: Callable[[Tensor], int]
    ) -> int:
        """Return the chosen token, or the best other one that leaves room to end the answer.

        Args:
            room: how many tokens may follow it.
            choose: returns the best token of a mask [1, V].
        """
        mask: Mask | None = None
        for _ in range(TRIES):
            if self._closing.fits(token, room):
                return token
            if mask is None:
                mask = self.allowed(banned).copy()
            mask[token] = False
            if not mask.any():
                break
            token = choose(to_tensor([mask]))
        assert self._closing.way, "a token that does not fit leaves a way that does"
        return self._closing.way[0]

    def emit(self, token: int) -> bool:
        """Take a token that was allowed. Return True if it completes the answer.

        Raises `RequestError` where the grammar turns out too complex to be followed.
        """
        self._closing.move(token)
        self.grammar.consume(token)
        return self.grammar.is_complete()


def to_tensor(masks: Sequence[Mask]) -> Tensor:
    """Return the masks of several rows as a tensor, [R, V] bool."""
    return torch.from_numpy(np.stack(masks))


def _without(mask: Mask, banned: Sequence[int]) -> Mask:
    if not banned:
        return mask
    others = mask.copy()
    others[list(banned)] = False
    return others if others.any() else mask
