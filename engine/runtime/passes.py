"""The rows of a pass: prompts and draft trees of all sequences, side by side."""

from collections.abc import Sequence as Seq
from dataclasses import dataclass

import torch

from engine.drafting.tree import DraftTree
from engine.kv.cache import KVCache
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.segment import Segment
from engine.sequences.scheduler import Turn
from engine.sequences.sequence import Sequence
from engine.streaming.ring import Idle


@dataclass(frozen=True)
class Entry:
    """One sequence's place in a pass."""

    sequence: Sequence
    tree: DraftTree | None  # None: the prompt goes on in a later pass
    first: int  # its first row in the pass
    chain: int  # rows of pending tokens before the tree

    @property
    def root(self) -> int:
        """The pass's row of the tree's root."""
        return self.first + self.chain

    def kept(self, rows: Seq[int]) -> list[int]:
        """Rows of this sequence that become its prefix: the chain, then accepted tree rows."""
        return [*range(self.chain), *(self.chain + row for row in rows)]


@dataclass(frozen=True)
class Pass:
    """Everything a walk over the layers needs to know of its rows."""

    entries: tuple[Entry, ...]
    tokens: list[int]
    positions: list[int]
    batch: Batch

    @property
    def num_pairs(self) -> float:
        """Pairs of a row and a token that it sees; a tree counts as a chain of its rows."""
        return sum(s.count * (s.start + s.count / 2) for s in self.batch.segments)


def assemble(
    turns: Seq[Turn],
    trees: Seq[DraftTree | None],
    cache: KVCache,
    decoder: Decoder,
    idle: Idle | None = None,
) -> Pass:
    """Lay the rows of all turns side by side. A tree comes after its sequence's pending tokens.

    Only a root has pending tokens before it: a sequence that drafts has none, its root is all.
    `idle` is called while the pass waits for weights.
    """
    tokens: list[int] = []
    positions: list[int] = []
    entries: list[Entry] = []
    segments: list[Segment] = []
    for turn, tree in zip(turns, trees, strict=True):
        sequence = turn.sequence
        start = sequence.pages.length
        chain = turn.chain - (tree is not None)
        assert tree is None or chain == 0 or len(tree.tokens) == 1
        own = sequence.tokens[start : start + chain] + list(tree.tokens if tree else ())
        depths = list(range(chain)) + [chain + depth for depth in (tree.depths if tree else ())]
        where = [start + depth for depth in depths]
        segments.append(
            Segment(
                first=len(tokens),
                count=len(own),
                start=start,
                slots=cache.slots(sequence.pages)[: start + len(own)],
                positions=torch.tensor(where, device=decoder.device),
                mask=tree.mask().to(decoder.device) if tree and len(tree.tokens) > 1 else None,
                cancelled=sequence.cancelled,
                is_long=sequence.is_long,
            )
        )
        entries.append(Entry(sequence, tree, len(tokens), chain))
        tokens += own
        positions += where
    batch = Batch(cache.pool, tuple(segments), range(len(tokens)), decoder.strict, idle=idle)
    return Pass(tuple(entries), tokens, positions, batch)
