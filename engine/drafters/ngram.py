"""N-gram look-up: what followed the same tokens earlier in this sequence may follow again.

Prompt lookup decoding (Saxena, 2023): find the latest places where the last n tokens occurred,
n from long to short, and propose what came next. Costs no draft model.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from math import log

from engine.drafter import DraftContext, DraftNeeds, Target
from engine.growth import Bounds
from engine.sequence import Sequence
from engine.tree import DraftTree

LONGEST, SHORTEST = 4, 1  # tokens of a match
PLACES = 4  # continuations per match length
LEVEL_SCORE = log(0.8)  # a guess at how likely one more looked-up token is right


@dataclass
class _Memory:
    """Where each n-gram of one sequence ended: the positions behind it, oldest first."""

    places: dict[tuple[int, ...], list[int]] = field(default_factory=dict)
    num_indexed: int = 0

    def update(self, tokens: Seq[int]) -> None:
        # The n-gram that ends the sequence has no continuation yet.
        for end in range(self.num_indexed + 1, len(tokens)):
            for length in range(SHORTEST, min(LONGEST, end) + 1):
                self.places.setdefault(tuple(tokens[end - length : end]), []).append(end)
        self.num_indexed = max(self.num_indexed, len(tokens) - 1)

    def continuations(self, tokens: Seq[int], depth: int) -> Iterator[tuple[Seq[int], float]]:
        """Candidate continuations with the score of their first token, most trusted first."""
        for length in range(min(LONGEST, len(tokens)), SHORTEST - 1, -1):
            found = self.places.get(tuple(tokens[-length:]), [])
            for rank, place in enumerate(reversed(found[-PLACES:])):
                yield tokens[place : place + depth], LEVEL_SCORE * (1 + LONGEST - length + rank)


class Ngram:
    """Trees out of the sequence's own past."""

    def __init__(self, bounds: Bounds) -> None:
        self.bounds = bounds
        self.needs = DraftNeeds(tree_rows=bounds.budget, scratch_rows=bounds.budget)
        self._memories: dict[Sequence, _Memory] = {}

    def build(self, target: Target) -> "Ngram":
        return self

    def propose(self, sequences: Seq[Sequence], rooms: Seq[int]) -> list[DraftTree]:
        return [self._tree(s, room) for s, room in zip(sequences, rooms, strict=True)]

    def _tree(self, sequence: Sequence, room: int) -> DraftTree:
        memory = self._memories.setdefault(sequence, _Memory())
        memory.update(sequence.tokens)
        depth = min(self.bounds.depth, sequence.max_draft_depth)
        tree = DraftTree.root(sequence.tokens[-1])
        for found, score in memory.continuations(sequence.tokens, depth):
            continuation = _until_end(found, sequence)
            scores = [score + level * LEVEL_SCORE for level in range(len(continuation))]
            chain = DraftTree.chain([sequence.tokens[-1], *continuation], [0.0, *scores])
            tree = tree.merge(chain)
        return tree.limit(depth, min(self.bounds.budget, room))

    def commit(self, sequence: Sequence, rows: Seq[int]) -> None:
        """The tokens themselves are all that is remembered."""

    def release(self, sequence: Sequence) -> None:
        self._memories.pop(sequence, None)


def _until_end(tokens: Seq[int], sequence: Sequence) -> Seq[int]:
    """Up to the first token that would end the sequence, that one included."""
    ends = (place for place, token in enumerate(tokens, 1) if sequence.is_terminal(token))
    return tokens[: next(ends, len(tokens))]


def prepare(context: DraftContext) -> Ngram:
    return Ngram(context.bounds(Bounds(depth=16, width=1, branch=1, budget=32)))
