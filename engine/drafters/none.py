"""No drafts: plain decoding, one token a pass."""

from collections.abc import Sequence as Seq

from engine.drafter import DraftContext, DraftNeeds, Target
from engine.sequence import Sequence
from engine.tree import DraftTree


class Plain:
    """Proposes the root alone."""

    needs = DraftNeeds(tree_rows=1, scratch_rows=1)

    def build(self, target: Target) -> "Plain":
        return self

    def propose(self, sequences: Seq[Sequence], rooms: Seq[int]) -> list[DraftTree]:
        return [DraftTree.root(sequence.tokens[-1]) for sequence in sequences]

    def commit(self, sequence: Sequence, rows: Seq[int]) -> None:
        """Nothing is kept."""

    def release(self, sequence: Sequence) -> None:
        """Nothing is kept."""


def prepare(context: DraftContext) -> Plain:
    return Plain()
