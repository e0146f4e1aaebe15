"""The closing tokens of an answer: with them, a token limit never cuts it in the middle.

At each step, a sequence of tokens is known that would complete the answer. A token may be emitted
only if closing tokens are known after it that fit within the limit. They need not be the shortest
ones. They depend only on the tokens of the answer, so drafts have no influence on them.
"""

from engine.sampling.grammar.grammar import Grammar
from engine.sampling.grammar.token_ranks import TokenRanks

MAX_STEPS = 128  # of a search for closing tokens; forced tokens do not count
MAX_TOKENS = 512  # closing tokens at most: while more may follow, no check is needed
MAX_SKIPPED = 4  # leading closing tokens that a newly emitted token may replace
RETRY_INTERVAL = 16  # tokens until the next search for closing tokens after one that failed

ClosingTokens = tuple[int, ...]


class ClosingPath:
    """The closing tokens from the current state of a grammar on."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._num_advanced: int | None = None  # tokens since the first search
        self._tried: tuple[int, ClosingTokens | None] | None = None  # checked last
        # The closing tokens, with an end-of-sequence token if one has to be emitted. They are
        # empty if the answer is complete, and None if none were found.
        self.tokens: ClosingTokens | None = None

    def can_close_after(self, token: int, room: int) -> bool:
        """Return True if `room` tokens after `token` are enough to complete the answer.

        Return True also if no token leaves enough of them: then the limit has to cut the answer.
        Call this for every token before it is emitted.
        """
        if room >= MAX_TOKENS:
            return True
        if self._num_advanced is None:
            self.tokens, self._num_advanced = _find_closing(self._grammar), 0
        if self.tokens is None or len(self.tokens) > room + 1:
            return True
        closing = self._closing_after(token)
        return closing is not None and len(closing) <= room

    def advance(self, token: int) -> None:
        """Update the closing tokens for a token that the grammar is about to consume."""
        if self._num_advanced is None:
            return
        self._num_advanced += 1
        self.tokens = self._closing_after(token)
        self._tried = None

    def _closing_after(self, token: int) -> ClosingTokens | None:
        """Return the closing tokens after `token`; None if none were found."""
        if self.tokens and self.tokens[0] == token:
            return self.tokens[1:]
        if self._tried is None or self._tried[0] != token:
            with self._grammar.trial([token]) as matches:
                self._tried = token, self._update() if matches else None
        return self._tried[1]

    def _update(self) -> ClosingTokens | None:
        """Return the old closing tokens, or the last of them, if they still fit; else search."""
        if self._grammar.is_complete():
            return ()
        if self.tokens is None:
            again = self._num_advanced is not None and self._num_advanced % RETRY_INTERVAL == 0
            return _find_closing(self._grammar) if again else None
        for skipped in range(min(MAX_SKIPPED, len(self.tokens))):
            closing = self.tokens[skipped:]
            with self._grammar.trial(closing) as matches:
                if matches and self._grammar.is_complete():
                    return closing
        return _find_closing(self._grammar)


def _find_closing(grammar: Grammar) -> ClosingTokens | None:
    """Return the shortest closing tokens that the orders of tokens find; None without any."""
    closings = [_find_closing_by_rank(grammar, ranks) for ranks in grammar.grammars.ranks]
    return min((closing for closing in closings if closing is not None), key=len, default=None)


def _find_closing_by_rank(grammar: Grammar, ranks: TokenRanks) -> ClosingTokens | None:
    """Return the closing tokens found with one order of tokens; None without any.

    Each step appends the forced tokens, or else the best-ranked allowed token.
    """
    closing: list[int] = []
    with grammar.trial():
        for _ in range(MAX_STEPS):
            if grammar.is_complete():
                return tuple(closing)
            if grammar.is_accepting():
                return (*closing, grammar.grammars.eos_token_ids[0])
            step = grammar.forced()
            if not step:
                mask = grammar.mask()
                if mask is None or not mask.any():
                    return None
                step = [ranks.best(mask)]
            closing += step
            if len(closing) > MAX_TOKENS or not grammar.attempt(step):
                return None
    return None
