"""Tokens that would complete an answer, so that a token limit never cuts it in the middle.

A way to the end of the answer is always known, token by token, and each emitted token must leave
one that fits into what the limit leaves. It need not be the shortest. It depends on the answer's
tokens alone, so drafts play no part in it.
"""

from engine.sampling.grammar.grammar import Grammar
from engine.sampling.grammar.token_ranks import TokenRanks

MOST_STEPS = 128  # choices on a way; forced tokens do not count
MOST_TOKENS = 512  # of a way: while more are left, every answer can be completed
SKIPPED = 4  # tokens at the start of the old way that a new token may replace
RETRY = 16  # tokens after which a way is looked for again if there was none

Way = tuple[int, ...]


class Closing:
    """The way from the present state of a grammar to the end of the answer."""

    def __init__(self, grammar: Grammar) -> None:
        self._grammar = grammar
        self._num_moves: int | None = None  # since a way was first looked for
        self._tried: tuple[int, Way | None] | None = None  # the token asked for last
        # With an end-of-sequence token where one has to be emitted, empty when the answer is
        # complete, None where none was found.
        self.way: Way | None = None

    def fits(self, token: int, room: int) -> bool:
        """Return True if `room` tokens after this one are enough to end the answer.

        Also True where no token leaves enough: then the limit has to cut the answer. Call it for
        every token that is emitted.
        """
        if room >= MOST_TOKENS:
            return True
        if self._num_moves is None:
            self.way, self._num_moves = _look_for(self._grammar), 0
        if self.way is None or len(self.way) > room + 1:
            return True
        way = self._after(token)
        return way is not None and len(way) <= room

    def move(self, token: int) -> None:
        """Follow the grammar, which is about to consume this token."""
        if self._num_moves is None:
            return
        self._num_moves += 1
        self.way = self._after(token)
        self._tried = None

    def _after(self, token: int) -> Way | None:
        if self.way and self.way[0] == token:
            return self.way[1:]
        if self._tried is None or self._tried[0] != token:
            with self._grammar.trial([token]) as matches:
                self._tried = token, self._renew() if matches else None
        return self._tried[1]

    def _renew(self) -> Way | None:
        """Return the old way or the rest of it if it still leads to the end, else a new one."""
        if self._grammar.is_complete():
            return ()
        if self.way is None:
            again = self._num_moves is not None and self._num_moves % RETRY == 0
            return _look_for(self._grammar) if again else None
        for skipped in range(min(SKIPPED, len(self.way))):
            way = self.way[skipped:]
            with self._grammar.trial(way) as matches:
                if matches and self._grammar.is_complete():
                    return way
        return _look_for(self._grammar)


def _look_for(grammar: Grammar) -> Way | None:
    ways = [_follow(grammar, ranks) for ranks in grammar.grammars.ranks]
    return min((way for way in ways if way is not None), key=len, default=None)


def _follow(grammar: Grammar, ranks: TokenRanks) -> Way | None:
    """Return the forced tokens, or the best of the allowed ones, down to the end."""
    way: list[int] = []
    with grammar.trial():
        for _ in range(MOST_STEPS):
            if grammar.is_complete():
                return tuple(way)
            if grammar.is_accepting():
                return (*way, grammar.grammars.eos_token_ids[0])
            step = grammar.forced()
            if not step:
                mask = grammar.mask()
                if mask is None or not mask.any():
                    return None
                step = [ranks.best(mask)]
            way += step
            if len(way) > MOST_TOKENS or not grammar.attempt(step):
                return None
    return None
