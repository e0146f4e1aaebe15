"""A model on the device that grows draft trees, with a KV cache of its own or the target's.

SubSpec and SpecExec share it: only the weights and the cache differ. The KV of drafted rows is in
scratch slots, and each row attends to the prefix and its own ancestors. The target's pass writes
other slots, so a tree can grow during a pass and its branches outlive the pass.
"""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.drafting.calibration import Calibration
from engine.drafting.growth import Growth, Node
from engine.drafting.model.children import Children
from engine.drafting.model.cuda_graphs import GraphedSteps
from engine.drafting.model.draft_cache import DraftCache, Scratch
from engine.drafting.model.pending import MOST_AS_NODES, pending_slots, run_long
from engine.drafting.model.shared_layers import SharedLayers
from engine.drafting.model.substitutes import WeightCopies
from engine.drafting.tree import Bounds
from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.model.attention import Batch
from engine.model.borrowed import PassCancelled
from engine.model.decoder import Decoder
from engine.model.resumable import OutOfTime, ResumableForward
from engine.model.segment import Segment, upload_segments
from engine.recurrent.branch import NodeRows, advance_states
from engine.sequences.sequence import TokenSequence
from engine.spec import TILE
from engine.streaming.ring import OnWait


class BoundWeights:
    """The weights of a model whose modules hold them all the time, so that none are streamed."""

    def unit(
        self, index: int, on_wait: OnWait | None = None
    ) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Return an empty unit: the module has its weights already."""
        return nullcontext({})


@dataclass(frozen=True)
class DraftStep:
    """The nodes of some trees that are run in one batch, and pending tokens before their roots."""

    chosen: list[tuple[Growth, list[Node]]]
    tokens: list[int]
    positions: list[int]
    logit_rows: Tensor  # the rows of nodes, which need logits, [nodes] on the device
    # What `Decoder.embed` returned, on the device, if the step may be a graph; else empty.
    embedded: Sequence[Tensor]
    batch: Batch
    resumable: ResumableForward


class DraftModel:
    """A model that runs the nodes of growths and adds their best children."""

    def __init__(
        self,
        name: str,
        decoder: Decoder,
        caches: DraftCache,
        bounds: Bounds,
        vocab_size: int,
        graphs: GraphedSteps | None = None,
        *,
        at_once: bool = False,
        copies: WeightCopies | None = None,
        shared: SharedLayers | None = None,
    ) -> None:
        """Take a model whose weights are on the device.

        Args:
            name: the method's name, which is the source of the drafted rows.
            bounds: the largest size of a tree.
            vocab_size: of the target. Its padding may differ from the draft's.
            graphs: the CUDA graphs of steps; None if all steps run plainly.
            at_once: whether the host waits for a step only once, when it reads the children.
            copies: the 4-bit copies of the target's weights that the model consists of; None: it
                does not, or no decoder knows their order.
            shared: the layers that may be the target's own; None: there are none.
        """
        self.name = name
        self.decoder = decoder
        self.caches = caches
        self.bounds = bounds
        self.vocab_size = vocab_size
        self.graphs = graphs
        self.copies = copies
        self.is_usable = True  # whether all layers have weights
        self._shared = shared
        self._children = Children(name, bounds.branch, at_once)
        self._scratch: dict[TokenSequence, Scratch] = {}
        self.unfinished: DraftStep | None = None  # begun and not finished

    def shares(self, numbers: Sequence[int]) -> bool:
        """Return whether some of these layers may be the target's own."""
        return self._shared is not None and bool(self._shared.numbers.intersection(numbers))

    def detach(self, numbers: Sequence[int]) -> None:
        """Drop the weights of layers that are shared with the target, whose units will move.

        No step may be unfinished. `attach` has to follow.
        """
        if self._shared is not None:
            self.graphs = None  # they have read the weights where these were
            self._shared.detach(numbers)

    def attach(self) -> None:
        """Take the weights of detached layers from the target again, or their substitutes.

        Raises `ModelError` if weights that travel coded could not be decoded without them.
        """
        if self._shared is not None and self._shared.numbers:
            self.is_usable = self._shared.attach()
            if self.graphs is None:
                self.graphs = self._shared.capture() if self.is_usable else None

    @property
    def num_shared_pages(self) -> int:
        """Return the number of scratch pages that belong to the target's own cache."""
        if not self.caches.is_shared:
            return 0
        return sum(scratch.num_pages for scratch in self._scratch.values())

    def step(self, chosen: Sequence[tuple[Growth, list[Node]]], calibration: Calibration) -> int:
        """Run these nodes in one batch, add their children, and return the number of rows run.

        With a root, all tokens before it that the cache lacks are run too (a prompt, the bonus
        token, an accepted leaf), so that the draft's KV has no holes. Nodes for which there is no
        room are not run and stay off the frontier.
        """
        before = 0
        if self.caches.nodes is not None and not self.caches.is_shared:
            for growth, nodes in chosen:
                if nodes[0] is growth.root:
                    before += run_long(self.decoder, self.caches, growth.sequence)
        step = self._prepare(chosen)
        if step is None:
            return before
        try:
            logits = self._forward(step)
        except PassCancelled:
            for growth, _ in step.chosen:
                self._scratch[growth.sequence].drop_pending()
            raise
        self._children.add(step.chosen, logits, calibration)
        return before + len(step.tokens)

    @property
    def num_pieces(self) -> int:
        """Return the number of pieces in which a step can run; 1 where steps are CUDA graphs."""
        return len(self.decoder.layers) if self.graphs is None else 1

    def begin_step(self, chosen: Sequence[tuple[Growth, list[Node]]]) -> None:
        """Start a draft step that can be run in several pieces."""
        assert self.unfinished is None, "one step at a time"
        self.unfinished = self._prepare(chosen)

    def continue_step(self, until: float, calibration: Calibration) -> bool:
        """Run the unfinished step until a time of perf_counter. Return True if it progressed."""
        step = self.unfinished
        if step is None:
            return False
        before = step.resumable.num_run
        step.resumable.resume(until)
        try:
            logits = self._forward(step)
        except OutOfTime:
            return step.resumable.num_run > before
        self.unfinished = None
        self._children.add(step.chosen, logits, calibration)
        return True

    def drop_step(self) -> None:
        """Drop the unfinished step and put its nodes back on their frontiers."""
        step, self.unfinished = self.unfinished, None
        if step is None:
            return
        for growth, nodes in step.chosen:
            self._scratch[growth.sequence].drop_pending()
            self.free_slots(growth.sequence, growth.undo_run(nodes))

    def can_continue(self, growth: Growth) -> bool:
        """Return True if all KV that rows of the growth attend to is still there."""
        if growth.root.slot is None:
            return True
        table = self.caches.prefix(growth.sequence)
        return table is not None and table.length == growth.root.position

    def accept(self, growth: Growth, path: Sequence[Node]) -> None:
        """Keep the KV of these nodes, from the root down: the target emitted their tokens."""
        slots: list[int] = []
        for node in path:
            if node.slot is None:
                break  # the draft never ran it; it runs it before the next bonus token
            slots.append(node.slot)
        self.caches.accept(growth.sequence, slots)
        if self.caches.nodes is not None and path and len(slots) == len(path):
            ran = [node.slot for node in growth.ran if node.slot is not None]
            self.caches.nodes.move_root(ran, slots[-1])

    def free_slots(self, sequence: TokenSequence, slots: Sequence[int]) -> None:
        """Free the scratch slots of a sequence's rows that are not needed any more."""
        if slots:
            self._scratch[sequence].give_back(slots)

    def close_scratch(self, sequence: TokenSequence) -> None:
        """Free the scratch pages of a sequence whose growth was dropped."""
        scratch = self._scratch.pop(sequence, None)
        if scratch is not None:
            scratch.close()

    def release(self, sequence: TokenSequence) -> None:
        """Free all pages of a sequence that ended or was paused."""
        self.close_scratch(sequence)
        self.caches.release(sequence)

    def _place(self, growth: Growth, nodes: list[Node]) -> list[Node]:
        """Assign scratch slots of the KV cache to nodes, and return the nodes that got one.

        Args:
            nodes: parents before their children.
        """
        sequence = growth.sequence
        table = self.caches.prefix(sequence)
        if table is None:
            return []
        pending: list[int] = []
        if nodes[0] is growth.root and table.length < len(sequence.tokens) - 1:
            growth.put_back(nodes[1:])  # pending tokens are run as a chain, without a mask
            nodes, pending = nodes[:1], pending_slots(sequence, table)
        scratch = self._scratch.get(sequence)
        if scratch is None:
            most = 2 * self.bounds.draft_rows + PAGE  # for this tree and what is drafted ahead
            scratch = Scratch(self.caches.cache, most, self.caches.nodes)
            self._scratch[sequence] = scratch
        if not self._can_read_states(growth, table, scratch, pending):
            return []
        placed: list[Node] = []
        for node in nodes:
            if node.parent is not None and node.parent.slot is None:
                continue  # there was no room for its parent
            slot = scratch.take()
            if slot is None:
                break
            growth.mark_run(node, slot)
            placed.append(node)
        if not placed:
            scratch.drop_pending()
        return placed

    def _can_read_states(
        self, growth: Growth, table: PageTable, scratch: Scratch, pending: Sequence[int]
    ) -> bool:
        """Return whether nodes can run in recurrent layers, where pending tokens get memory.

        Args:
            pending: the slots of these tokens, which run before the root.
        """
        if self.caches.nodes is None:
            return True
        position = growth.root.position - len(pending)
        if table.state is None or not table.state.is_caught_up(position):
            return False  # a pass changes the states that the rows would read
        return not pending or (len(pending) <= MOST_AS_NODES and scratch.take_pending(pending))

    def _prepare(self, chosen: Sequence[tuple[Growth, list[Node]]]) -> DraftStep | None:
        """Return a step of the nodes for which there is room; None if there is none."""
        ready = [(growth, own) for growth, nodes in chosen if (own := self._place(growth, nodes))]
        if not ready:
            return None
        tokens: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        before: list[Tensor] = []
        wanted: list[int] = []
        for growth, nodes in ready:
            own_tokens, own_positions, prefix, segment = self._segment(growth, nodes, len(tokens))
            tokens += own_tokens
            positions += own_positions
            segments.append(segment)
            before.append(prefix)
            wanted += range(len(tokens) - len(nodes), len(tokens))
        is_graph = self.graphs is not None and len(tokens) <= TILE
        embedded = self.decoder.embed(tokens) if is_graph else []
        placed, (rows, *embedded) = upload_segments(
            segments,
            [torch.tensor(wanted), *embedded],
            before=before,
            device=self.decoder.device,
        )
        pool, resumable = self.caches.cache.pool, ResumableForward()
        batch = Batch(pool, placed, range(len(tokens)), self.decoder.strict, resumable)
        return DraftStep(ready, tokens, positions, rows, embedded, batch, resumable)

    def _forward(self, step: DraftStep) -> Tensor:
        """Return the logits [nodes, V] at the rows of a step's nodes.

        Raises `OutOfTime` where the step's time is over before its last layer.
        """
        logits = None
        if self.graphs is not None and step.embedded:
            logits = self.graphs.logits(step.embedded, step.batch)
        if logits is None:
            hidden = self.decoder.forward(step.tokens, step.positions, step.batch)
            with self.decoder.head() as head:
                blocks = [head(block) for block in torch.split(hidden[step.logit_rows], TILE)]
            logits = torch.cat(blocks) if len(blocks) > 1 else blocks[0]
        elif len(step.logit_rows) < len(step.tokens):
            logits = logits[step.logit_rows]
        for growth, nodes in step.chosen:
            # Tiles of a cancelled sequence may have been skipped, so its slots are undefined.
            if growth.sequence.is_cancelled:
                self._scratch[growth.sequence].drop_pending()
            elif nodes[0] is growth.root:
                self._keep_pending(growth.sequence, nodes[0])
        missing = self.vocab_size - logits.shape[1]
        if missing:
            logits = F.pad(logits, (0, missing), value=-torch.inf)  # cuts where `missing` < 0
        return logits

    def _keep_pending(self, sequence: TokenSequence, root: Node) -> None:
        """Add the tokens that were run before a root to the prefix."""
        memory, scratch = self.caches.nodes, self._scratch[sequence]
        if memory is not None and scratch.pending:
            table = self.caches.prefix(sequence)
            assert table is not None and table.state is not None and root.slot is not None
            advance_states(table.state, memory, scratch.pending)
            memory.move_root([root.slot], scratch.pending[-1])
            scratch.drop_pending()
        self.caches.keep_pending(sequence)

    def _segment(
        self, growth: Growth, nodes: list[Node], first: int
    ) -> tuple[list[int], list[int], Tensor, Segment]:
        """Return the tokens and positions of one growth's rows, slots, and the rest of the segment.

        The rows are the pending tokens before a root, then the nodes. The slots are those of the
        stored prefix and of pending tokens, on the device; the segment has the others, and its
        tensors lie on the host.

        Args:
            first: the batch row of the first of them.
        """
        sequence = growth.sequence
        table = self.caches.prefix(sequence)
        assert table is not None, "placed nodes have a prefix"
        start, root = table.length, len(sequence.tokens) - 1
        pending = range(start, root) if nodes[0] is growth.root else range(0)
        earlier, mask = growth.visible(nodes)
        positions = [*pending, *(node.position for node in nodes)]
        prefix = self.caches.cache.slots(table)[: start + len(pending)]
        scratch = torch.tensor([node.slot for node in (*earlier, *nodes)])
        depths = torch.tensor([*(node.position for node in earlier), *positions])
        segment = Segment(
            first=first,
            count=len(positions),
            start=start,
            slots=scratch,
            positions=depths,
            mask=mask,
            cancelled=sequence.cancelled,
            is_long=self.decoder.is_long(len(sequence.tokens)),
            state=self._node_rows(table, self._scratch[sequence].pending, earlier, nodes, mask),
        )
        tokens = [sequence.tokens[position] for position in pending]
        return [*tokens, *(node.token for node in nodes)], positions, prefix, segment

    def _node_rows(
        self,
        table: PageTable,
        pending: Sequence[int],
        earlier: Sequence[Node],
        nodes: Sequence[Node],
        mask: Tensor | None,
    ) -> NodeRows | None:
        """Return how nodes read the states of recurrent layers; None if there are none.

        Args:
            pending: the slots of pending tokens before a root.
            earlier, mask: what `Growth.visible` returned for the nodes.
        """
        memory = self.caches.nodes
        if memory is None:
            return None
        assert table.state is not None, "a cache with recurrent layers gives each sequence a state"
        before, own = ([n.slot for n in part if n.slot is not None] for part in (earlier, nodes))
        return NodeRows(table.state, memory, before, [*pending, *own], mask)
