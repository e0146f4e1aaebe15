"""The rows of a pass: the prompts and draft trees of all sequences, one after another."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.drafting.tree import DraftTree
from engine.kv.cache import KVCache
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.segment import Segment, upload_segments
from engine.sequences.scheduler import Turn
from engine.sequences.sequence import TokenSequence
from engine.streaming.ring import OnWait


@dataclass(frozen=True)
class Entry:
    """The rows of one sequence in a pass.

    Args:
        tree: the sequence's draft tree; None if its prompt goes on in a later pass.
        first: the number of the sequence's first row in the pass.
        num_before_tree: the number of rows before the tree's root; without a tree, of all rows.
    """

    sequence: TokenSequence
    tree: DraftTree | None
    first: int
    num_before_tree: int

    @property
    def root(self) -> int:
        """The number of the tree's root row in the pass."""
        return self.first + self.num_before_tree

    def kept_rows(self, accepted: Sequence[int]) -> list[int]:
        """Return the rows whose KV the sequence keeps, counted from its first row in the pass.

        These are the rows before the tree and the `accepted` rows of the tree.
        """
        before = self.num_before_tree
        return [*range(before), *(before + row for row in accepted)]


@dataclass(frozen=True)
class Pass:
    """The rows of a pass, as the decoder runs them."""

    entries: tuple[Entry, ...]
    tokens: list[int]
    positions: list[int]
    batch: Batch

    @property
    def num_pairs(self) -> float:
        """The number of pairs of a row and a token that it sees, with trees counted as chains."""
        return sum(s.count * (s.start + s.count / 2) for s in self.batch.segments)


def assemble(
    turns: Sequence[Turn],
    trees: Sequence[DraftTree | None],
    cache: KVCache,
    decoder: Decoder,
    on_wait: OnWait | None = None,
) -> Pass:
    """Return the pass of all turns, in order: for each its pending tokens, then its tree.

    The last pending token is the tree's root. A tree of several rows has no pending tokens before
    its root, since only decoding sequences are drafted for.

    Args:
        trees: the tree of each turn; None if the turn does not end its prompt.
        on_wait: called while the pass waits for weights.
    """
    tokens: list[int] = []
    positions: list[int] = []
    entries: list[Entry] = []
    segments: list[Segment] = []
    slots: list[Tensor] = []
    for turn, tree in zip(turns, trees, strict=True):
        sequence = turn.sequence
        start = sequence.pages.length
        num_before = turn.num_pending - (tree is not None)
        assert tree is None or num_before == 0 or len(tree.tokens) == 1
        own = sequence.tokens[start : start + num_before] + list(tree.tokens if tree else ())
        depths = list(range(num_before)) + [
            num_before + depth for depth in (tree.depths if tree else ())
        ]
        if turn.num_pending > 1:
            cache.capture_states(sequence.pages, len(own), end=len(sequence.tokens))
        own_positions = [start + depth for depth in depths]
        slots.append(cache.slots(sequence.pages)[: start + len(own)])
        segments.append(
            Segment(
                first=len(tokens),
                count=len(own),
                start=start,
                slots=torch.tensor([], dtype=torch.int64),  # all of them are on the device
                positions=torch.tensor(own_positions),
                mask=tree.mask() if tree and len(tree) > 1 else None,
                cancelled=sequence.cancelled,
                is_long=sequence.is_long,
                state=sequence.pages.state,
            )
        )
        entries.append(Entry(sequence, tree, len(tokens), num_before))
        tokens += own
        positions += own_positions
    placed, _ = upload_segments(segments, [], before=slots, device=decoder.device)
    batch = Batch(cache.pool, placed, range(len(tokens)), decoder.strict, on_wait=on_wait)
    return Pass(tuple(entries), tokens, positions, batch)
