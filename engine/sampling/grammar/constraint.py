"""What an answer is held to: which tokens may be chosen, so that it matches its grammar in time.

Who wins where rules collide: the grammar; then the limit of tokens, by which the answer is to be
complete; then `min_tokens` and `ignore_eos`, which put its end off; then penalties and logit bias.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq

import numpy as np
import torch
from torch import Tensor

from engine.sampling.grammar.closing import Closing
from engine.sampling.grammar.grammar import Grammar, Mask

TRIES = 8  # tokens, the best first, that are asked whether the answer can be closed behind them


class Constraint:
    """One answer's grammar, and the way to the answer's end."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self._closing = Closing(grammar)

    def copy(self) -> "Constraint":
        """The same constraint before the first token."""
        return Constraint(self.grammar.copy())

    def allowed(self, banned: Seq[int]) -> Mask:
        """What may come next; banned tokens only where nothing else may. Raises `RequestError`."""
        return _without(self.grammar.allowed(), banned)

    def behind(self, path: Seq[int], banned: Seq[int]) -> Mask | None:
        """The same behind drafted tokens; None where they do not match, or nothing may follow."""
        with self.grammar.trial(path) as matches:
            mask = self.grammar.mask() if matches else None
        return None if mask is None else _without(mask, banned)

    def settle(
        self, token: int, room: int, banned: Seq[int], choose: Callable[[Tensor], int]
    ) -> int:
        """The chosen token, or a lesser one where behind it `room` tokens would be too few.

        `choose` gives the best of allowed tokens [1, V].
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
        """Take a token that was allowed; whether the answer is complete with it.

        Raises `RequestError` where the grammar turns out too complex to be followed.
        """
        self._closing.move(token)
        self.grammar.consume(token)
        return self.grammar.is_complete()


def to_tensor(masks: Seq[Mask]) -> Tensor:
    """Masks of several rows, [R, V] bool."""
    return torch.from_numpy(np.stack(masks))


def _without(mask: Mask, banned: Seq[int]) -> Mask:
    if not banned:
        return mask
    others = mask.copy()
    others[list(banned)] = False
    return others if others.any() else mask
