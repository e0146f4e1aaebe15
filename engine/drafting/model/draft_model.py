"""A resident model that grows draft trees, over a KV cache of its own or the target's.

The methods whose draft is a model share it: SubSpec's substitutes and SpecExec's separate model.
Drafted rows live in scratch slots, and each sees the prefix and its own ancestors. The target's
pass writes elsewhere, so a tree can go on growing and its branches outlive a pass.
"""

from collections.abc import Mapping, Sequence as Seq
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from math import exp, inf

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.drafting.calibration import Calibration
from engine.drafting.forcing import to_guess
from engine.drafting.growth import Growth, Node
from engine.drafting.model.cuda_graphs import graphed_steps
from engine.drafting.model.draft_cache import DraftCache, Scratch
from engine.drafting.model.guess import draft_children
from engine.drafting.tree import Bounds
from engine.kv.page_pool import PAGE
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.resumable import OutOfTime, ResumableForward
from engine.model.segment import Segment
from engine.sampling.logit_rules import is_path_dependent
from engine.sequences.sequence import Sequence
from engine.spec import TILE
from engine.streaming.device import Capture
from engine.streaming.ring import Idle

PROMPT_TILE = 512  # rows of a long prompt that run through a layer at a time
NEGLIGIBLE = -9.0  # nats: a less probable child is not worth a node


class Bound:
    """The weights of a model that stay bound to its modules: there is nothing to load."""

    def unit(
        self, index: int, idle: Idle | None = None
    ) -> AbstractContextManager[Mapping[str, Tensor]]:
        return nullcontext({})


@dataclass(frozen=True)
class DraftStep:
    """Nodes of some trees that are run in one batch."""

    chosen: list[tuple[Growth, list[Node]]]
    tokens: list[int]
    positions: list[int]
    wanted: list[int]  # rows of nodes: those that need logits
    batch: Batch
    resumable: ResumableForward


class DraftModel:
    """Runs nodes of growing trees, wherever the weights came from."""

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        caches: DraftCache,
        bounds: Bounds,
        vocab_size: int,
        capture: Capture | None = None,
    ) -> None:
        """Take a model; `vocab_size` is the target's, whose padding may differ from the draft's.

        `capture` records its steps as graphs, where the device has them.
        """
        self.name = name
        self.decoder = decoder
        self.caches = caches
        self.bounds = bounds
        self.vocab_size = vocab_size
        self.graphs = graphed_steps(decoder, caches.cache.pool, capture)
        self._scratch: dict[Sequence, Scratch] = {}
        self.under_way: DraftStep | None = None  # begun and not finished

    @property
    def num_captured(self) -> int:
        """Steps that took longer because a CUDA graph was captured."""
        return 0 if self.graphs is None else self.graphs.num_captured

    @property
    def num_shared_pages(self) -> int:
        """Scratch pages taken from the target's own cache."""
        if not self.caches.is_shared:
            return 0
        return sum(scratch.num_pages for scratch in self._scratch.values())

    def step(self, chosen: Seq[tuple[Growth, list[Node]]], calibration: Calibration) -> int:
        """Run these nodes in one batch, add their children, and return the number of rows run.

        A root takes along every token that the cache does not hold yet (a prompt, the bonus token,
        an accepted leaf), so that the draft's KV has no holes. Nodes for which there is no room
        stay off the frontier.
        """
        step = self._prepare(chosen)
        if step is None:
            return 0
        self._extend(step, self._forward(step), calibration)
        return len(step.tokens)

    @property
    def num_stretches(self) -> int:
        """The number of pieces a step may be run in; one where steps are CUDA graphs."""
        return len(self.decoder.decoder.layers) if self.graphs is None else 1

    def begin(self, chosen: Seq[tuple[Growth, list[Node]]]) -> None:
        """Start a draft step that can be run in several pieces."""
        assert self.under_way is None, "one step at a time"
        self.under_way = self._prepare(chosen)

    def go_on(self, until: float, calibration: Calibration) -> bool:
        """Run the step under way until a time (time.perf_counter). Return True if it progressed."""
        step = self.under_way
        if step is None:
            return False
        before = step.resumable.num_run
        step.resumable.resume(until)
        try:
            logits = self._forward(step)
        except OutOfTime:
            return step.resumable.num_run > before
        self.under_way = None
        self._extend(step, logits, calibration)
        return True

    def give_up(self) -> None:
        """Drop the step under way and put its nodes back on their frontiers."""
        step, self.under_way = self.under_way, None
        if step is None:
            return
        for growth, nodes in step.chosen:
            self.free(growth.sequence, growth.take_back(nodes))

    def continues(self, growth: Growth) -> bool:
        """Return True if all KV that the rows of the growth see is still there."""
        if growth.root.slot is None:
            return True
        table = self.caches.prefix(growth.sequence)
        return table is not None and table.length == growth.root.position

    def accept(self, growth: Growth, path: Seq[Node]) -> None:
        """Keep the KV of these nodes, from the root down: the target emitted their tokens."""
        slots: list[int] = []
        for node in path:
            if node.slot is None:
                break  # the draft never ran it: it does with the next bonus token
            slots.append(node.slot)
        self.caches.accept(growth.sequence, slots)

    def free(self, sequence: Sequence, slots: Seq[int]) -> None:
        """Free the scratch slots of rows that are not needed any more."""
        if slots:
            self._scratch[sequence].give_back(slots)

    def shrink(self, sequence: Sequence) -> None:
        """Give the scratch pages of a sequence back, whose growth is gone."""
        scratch = self._scratch.pop(sequence, None)
        if scratch is not None:
            scratch.close()

    def release(self, sequence: Sequence) -> None:
        """Give all pages of a sequence back: it ended or was paused."""
        self.shrink(sequence)
        self.caches.release(sequence)

    def _placed(self, growth: Growth, nodes: list[Node]) -> list[Node]:
        """Give nodes scratch slots, parents first, and return those for which there was room."""
        sequence = growth.sequence
        table = self.caches.prefix(sequence)
        if table is None:
            return []
        if nodes[0] is growth.root and table.length < len(sequence.tokens) - 1:
            growth.put_back(nodes[1:])  # a long prompt is run as a chain, without a mask
            nodes = nodes[:1]
        scratch = self._scratch.get(sequence)
        if scratch is None:
            most = 2 * self.bounds.draft_rows + PAGE  # this tree's, and what is drafted ahead
            scratch = self._scratch[sequence] = Scratch(self.caches.cache, most)
        placed: list[Node] = []
        for node in nodes:
            if node.parent is not None and node.parent.slot is None:
                continue  # there was no room for its parent
            slot = scratch.take()
            if slot is None:
                break
            growth.run(node, slot)
            placed.append(node)
        return placed

    def _extend(self, step: DraftStep, logits: Tensor, calibration: Calibration) -> None:
        """Add the best children of all nodes that were run; logits [nodes, V]."""
        parts = torch.split(logits, [len(nodes) for _, nodes in step.chosen])
        for (growth, nodes), own in zip(step.chosen, parts, strict=True):
            self._add_children(growth, nodes, own, calibration)

    def _add_children(
        self, growth: Growth, nodes: list[Node], logits: Tensor, calibration: Calibration
    ) -> None:
        """Add the best children of one tree's nodes; logits [nodes, V]."""
        sequence = growth.sequence
        rows, allowed = to_guess(growth, nodes)
        if not rows:
            return
        if len(rows) < len(nodes):
            nodes, logits = [nodes[row] for row in rows], logits[rows]
        positions = [node.position + 1 for node in nodes]
        is_path = is_path_dependent(sequence.params)
        paths = [growth.path(node) for node in nodes] if is_path else None
        banned = None if allowed is not None else [sequence.banned(own) for own in positions]
        tokens, beliefs = draft_children(
            logits,
            sequence.params,
            sequence.counts,
            positions=positions,
            choice=sequence.choice,
            paths=paths,
            banned=banned,
            allowed=allowed,
            tau=calibration.tau(sequence.params),
            branch=self.bounds.branch,
        )
        for node, own, scores in zip(nodes, tokens.tolist(), beliefs.tolist(), strict=True):
            gains = [calibration.gain(self.name, s) if s > -inf else -inf for s in scores]
            calibration.observe_mass(min(sum(map(exp, gains)), 1.0))
            for token, belief, gain in zip(own, scores, gains, strict=True):
                if gain > NEGLIGIBLE or node.children.get(token):
                    growth.add(node, token, belief, gain, self.name)

    def _prepare(self, chosen: Seq[tuple[Growth, list[Node]]]) -> DraftStep | None:
        """Prepare a step of the nodes that there is room for; None if there is no room."""
        ready = [(growth, own) for growth, nodes in chosen if (own := self._placed(growth, nodes))]
        if not ready:
            return None
        tokens: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        wanted: list[int] = []
        for growth, nodes in ready:
            own_tokens, own_positions, segment = self._segment(growth, nodes, len(tokens))
            tokens += own_tokens
            positions += own_positions
            segments.append(segment)
            wanted += range(len(tokens) - len(nodes), len(tokens))
        rows, resumable = range(len(tokens)), ResumableForward()
        batch = Batch(self.caches.cache.pool, tuple(segments), rows, self.decoder.strict, resumable)
        own = self.decoder.embedding.num_embeddings
        known = [token if token < own else 0 for token in tokens]  # padding of the target's
        return DraftStep(ready, known, positions, wanted, batch, resumable)

    def _forward(self, step: DraftStep) -> Tensor:
        """Return the logits [nodes, V] of the nodes of a step. Raises `OutOfTime`."""
        tokens, wanted = step.tokens, step.wanted
        logits = None if self.graphs is None else self.graphs.logits(tokens, step.batch)
        if logits is None:
            hidden = self.decoder.forward(tokens, step.positions, step.batch)
            rows = hidden[torch.tensor(wanted).to(hidden.device, non_blocking=True)]
            with self.decoder.head() as head:
                blocks = [head(block) for block in torch.split(rows, TILE)]
            logits = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
        elif len(wanted) < len(tokens):
            logits = logits[torch.tensor(wanted).to(logits.device, non_blocking=True)]
        for growth, nodes in step.chosen:
            # Tiles of clients that left may have been skipped: their slots hold anything.
            if nodes[0] is growth.root and not growth.sequence.is_cancelled:
                self.caches.keep_pending(growth.sequence)
        missing = self.vocab_size - logits.shape[1]
        if missing:
            logits = F.pad(logits, (0, missing), value=-torch.inf)  # cuts where it is negative
        return logits

    def _segment(
        self, growth: Growth, nodes: list[Node], first: int
    ) -> tuple[list[int], list[int], Segment]:
        """Return tokens and positions of one tree's rows, and what they see.

        The rows are the pending tokens before a root, then the nodes.
        """
        sequence = growth.sequence
        table = self.caches.prefix(sequence)
        assert table is not None, "placed nodes have a prefix"
        start, root = table.length, len(sequence.tokens) - 1
        pending = range(start, root) if nodes[0] is growth.root else range(0)
        earlier, mask = growth.visible(nodes)
        positions = [*pending, *(node.position for node in nodes)]
        device = self.decoder.device
        prefix = self.caches.cache.slots(table)[: start + len(pending)]
        scratch = torch.tensor([node.slot for node in (*earlier, *nodes)])
        depths = torch.tensor([*(node.position for node in earlier), *positions])
        segment = Segment(
            first=first,
            count=len(positions),
            start=start,
            slots=torch.cat([prefix, scratch.to(device, non_blocking=True)]),
            positions=depths.to(device, non_blocking=True),
            mask=None if mask is None else mask.to(device, non_blocking=True),
            cancelled=sequence.cancelled,
            is_long=self.decoder.is_long(len(sequence.tokens)),
        )
        tokens = [sequence.tokens[position] for position in pending]
        return [*tokens, *(node.token for node in nodes)], positions, segment
