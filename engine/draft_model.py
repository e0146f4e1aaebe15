"""A resident model that grows draft trees over a paged KV cache.

Shared by the methods whose draft is a model: SubSpec's substitutes, which write into the scratch
slots of the target's own cache, and SpecExec's separate model, which has a cache of its own.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Seq
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.attention import Batch, Segment
from engine.decoder import HEAD_ROWS, Decoder
from engine.growth import Bounds, Growth, grow
from engine.kv_cache import KVCache, PageTable
from engine.sampling import draft_children
from engine.sequence import Sequence

PROMPT_TILE = 512  # rows of a long prompt that run through a layer at a time
TAU = 0.5  # sharpens the scores: draft and target share noise, so a child's win is near certain


class Bound:
    """Weights that are bound to their modules for good: there is nothing to borrow."""

    def unit(self, index: int) -> AbstractContextManager[Mapping[str, Tensor]]:
        return nullcontext({})


class DraftModel:
    """Runs growing trees; knows nothing of where the weights came from."""

    def __init__(self, decoder: Decoder, cache: KVCache, bounds: Bounds, vocab_size: int) -> None:
        """`vocab_size` is the target's; a draft of the same tokens may have other padding."""
        self.decoder = decoder
        self.cache = cache
        self.bounds = bounds
        self.vocab_size = vocab_size

    def grow(
        self, sequences: Seq[Sequence], tables: Seq[PageTable], rooms: Seq[int]
    ) -> list[Growth]:
        """Grow one tree per sequence. Each table has room for its pending tokens and the tree.

        The first step runs, with the root, every token the table does not hold yet (a prompt, the
        bonus token, an accepted leaf): its KV has no holes.
        """
        growths = [Growth(s, self.bounds, room) for s, room in zip(sequences, rooms, strict=True)]
        table_of = dict(zip(growths, tables, strict=True))

        def forward(step: list[tuple[Growth, list[int]]]) -> Tensor:
            return self._forward([(g, nodes, table_of[g]) for g, nodes in step])

        grow(growths, forward, self._children)
        return growths

    def _children(self, growth: Growth, nodes: list[int], logits: Tensor) -> tuple[Tensor, Tensor]:
        sequence = growth.sequence
        positions = [len(sequence.tokens) + growth.depths[node] for node in nodes]
        return draft_children(
            logits,
            sequence.params,
            sequence.counts,
            positions=positions,
            choice=sequence.choice,
            paths=[growth.path(node) for node in nodes],
            banned=[sequence.banned(position) for position in positions],
            tau=TAU,
            branch=self.bounds.branch,
        )

    def _forward(self, step: list[tuple[Growth, list[int], PageTable]]) -> Tensor:
        """One batch of rows; logits [rows of all nodes, V]."""
        tokens: list[int] = []
        positions: list[int] = []
        long: list[bool] = []
        segments: list[Segment] = []
        wanted: list[int] = []  # rows that need logits
        for growth, nodes, table in step:
            own_tokens, own_positions, segment = self._segment(growth, nodes, table, len(tokens))
            tokens += own_tokens
            positions += own_positions
            long += [self.decoder.is_long(len(growth.sequence.tokens))] * len(own_tokens)
            segments.append(segment)
            wanted += range(len(tokens) - len(nodes), len(tokens))
        batch = Batch(self.cache, tuple(segments), range(len(tokens)), self.decoder.strict)
        own = self.decoder.embedding.num_embeddings
        known = [token if token < own else 0 for token in tokens]  # padding of the target's
        hidden = self.decoder.forward(known, positions, long, batch)
        for growth, nodes, table in step:
            # Tiles of clients that left may have been skipped: their slots hold anything.
            if nodes[0] == 0 and not growth.sequence.request.cancelled.is_set():
                self._keep_pending(growth.sequence, table)
        rows = hidden[torch.tensor(wanted, device=hidden.device)]
        with self.decoder.head() as head:
            logits = torch.cat([head(block) for block in torch.split(rows, HEAD_ROWS)])
        missing = self.vocab_size - logits.shape[1]
        return F.pad(logits, (0, missing), value=-torch.inf)  # cuts where it is negative

    def _segment(
        self, growth: Growth, nodes: list[int], table: PageTable, first: int
    ) -> tuple[list[int], list[int], Segment]:
        """Tokens and positions of one tree's rows, and how they see each other."""
        sequence = growth.sequence
        if nodes[0] == 0:  # the root, and what comes before it that is not stored yet
            tokens = sequence.tokens[table.length :]
            positions = list(range(table.length, len(sequence.tokens)))
            seen, mask = positions, None
        else:
            root = len(sequence.tokens) - 1
            order = sorted(growth.scratch, key=growth.scratch.__getitem__)
            tokens = [growth.tokens[node] for node in nodes]
            positions = [root + growth.depths[node] for node in nodes]
            seen = [root + growth.depths[node] for node in order]
            ran = len(order)
            mask = growth.ancestors[ran - len(nodes) : ran, :ran].to(self.decoder.device)
        segment = Segment(
            first=first,
            count=len(tokens),
            start=table.length,
            slots=self.cache.slots(table)[: table.length + len(seen)],
            positions=torch.tensor(seen, device=self.decoder.device),
            mask=mask,
            cancelled=sequence.request.cancelled,
        )
        return tokens, positions, segment

    def _keep_pending(self, sequence: Sequence, table: PageTable) -> None:
        pending = len(sequence.tokens) - 1 - table.length
        if pending:
            self.cache.keep(table, range(pending))
            self.cache.publish(table, sequence.tokens)
