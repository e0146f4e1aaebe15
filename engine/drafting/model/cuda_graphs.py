"""Draft steps as CUDA graphs, which launch hundreds of small kernels at once.

A draft step is limited by its kernel launches, not by its arithmetic. A graph launches all kernels
at once but has fixed shapes and addresses. So a step is padded to a bucket of rows and of visible
KV slots, its inputs are copied to the addresses that the graph reads, and one graph serves all
steps of a bucket.

Rows of several sequences share one padded step, with one list of the slots that are read and a
mask of which row attends to which slot. Padding rows repeat the last row, which writes the same
values to the same slot again; padding slots are that row's slot, hidden by the mask. So a step
reads and writes only its own memory.
"""

import logging
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from engine.kv.page_pool import PagePool
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.segment import Segment
from engine.spec import TILE
from engine.streaming.device import Capture, Work

log = logging.getLogger(__name__)

MIN_KV = 256  # visible slots of the smallest bucket
MAX_KV = 1 << 15  # with more slots attention takes longer than the kernel launches
MAX_GRAPHS = 24  # graphs that are kept; each holds a few MiB of kernels, and its inputs


@dataclass(frozen=True)
class Bucket:
    """The shapes of a padded step."""

    rows: int  # 1, 2, 4, ... TILE
    kv: int  # slots that are read beside the rows' own; powers of two from MIN_KV

    @classmethod
    def of(cls, batch: Batch) -> "Bucket | None":
        """Return the smallest bucket that holds the batch; None for a batch that is too large."""
        rows = _next_power(len(batch.rows), 1)
        kv = _next_power(sum(s.start + s.num_scratch for s in batch.segments), MIN_KV)
        return cls(rows, kv) if rows <= TILE and kv <= MAX_KV else None


class PaddedStep:
    """A step of the draft model whose inputs have fixed shapes and addresses."""

    def __init__(self, decoder: Decoder, pool: PagePool, bucket: Bucket) -> None:
        rows, kv = bucket.rows, bucket.kv
        device = decoder.device
        self._decoder = decoder
        self._kv = kv
        self._inputs = [
            torch.zeros(rows, own.shape[1], dtype=own.dtype, device=device)
            for own in decoder.embed([0])
        ]
        self._slots = torch.zeros(kv + rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(kv + rows, dtype=torch.int64, device=device)
        self._mask = torch.zeros(rows, kv + rows, dtype=torch.bool, device=device)
        self._numbers = torch.arange(max(rows, kv), device=device)
        segment = Segment(
            first=0,
            count=rows,
            start=0,
            slots=self._slots,
            positions=self._positions,
            mask=self._mask,
            cancelled=Event(),
        )
        self._batch = Batch(pool, (segment,), range(rows), strict=False)

    def fill(self, embedded: Sequence[Tensor], segments: Sequence[Segment]) -> None:
        """Copy what `Decoder.embed` returned for rows that fit the bucket, and their segments."""
        rows = len(embedded[0])
        for own, given in zip(self._inputs, embedded, strict=True):
            own[:rows].copy_(given, non_blocking=True)
            own[rows:] = own[rows - 1]
        self._mask.fill_(False)
        first = 0  # of the segment's visible slots
        for segment in segments:
            self._place(segment, first)
            first += segment.start + segment.num_scratch
        last = self._kv + rows - 1
        for inputs in (self._slots, self._positions):
            inputs[first : self._kv] = inputs[last : last + 1]
            inputs[last + 1 :] = inputs[last : last + 1]
        self._mask[rows:] = self._mask[rows - 1]

    def run(self) -> Tensor:
        """Return logits [rows of the bucket, V]; the first rows are those given to `fill`."""
        # A layer overwrites its input, so it gets a copy.
        positions = self._positions[None, self._kv :]
        inputs = [own.clone() for own in self._inputs]
        hidden = self._decoder.run(inputs, positions, self._batch)
        with self._decoder.head() as head:
            return head(hidden)

    def _place(self, segment: Segment, first: int) -> None:
        """Copy a segment's slots, positions and mask to the inputs of the graph.

        Args:
            first: the column of the mask for the first of the slots before the segment's rows.
        """
        before = segment.start + segment.num_scratch
        visible = slice(first, first + before)
        scratch = slice(first + segment.start, first + before)
        rows = slice(segment.first, segment.first + segment.count)
        own = slice(self._kv + rows.start, self._kv + rows.stop)
        self._slots[visible] = segment.slots[:before]
        self._slots[own] = segment.slots[before : before + segment.count]
        self._positions[first : scratch.start] = self._numbers[: segment.start]
        self._positions[scratch] = segment.positions[: segment.num_scratch]
        self._positions[own] = segment.positions[segment.num_scratch :]
        self._mask[rows, visible] = True
        mask = segment.visible_slots(range(segment.count))
        if mask is None:
            self._mask[rows, own] = True
        else:
            self._mask[rows, scratch] = mask[:, : segment.num_scratch]
            self._mask[rows, own] = mask[:, segment.num_scratch :]


class GraphedSteps:
    """The graphs of one draft model, captured when a bucket is first needed."""

    def __init__(self, decoder: Decoder, pool: PagePool, capture: Capture) -> None:
        """Make graphs for a model whose rope does not depend on length (`graphed_steps`)."""
        self.num_captured = 0  # attempts since the start; a step that captures takes longer
        self._decoder = decoder
        self._pool = pool
        self._capture = capture
        self._is_refused = False
        self._graphs: OrderedDict[Bucket, tuple[PaddedStep, Work]] = OrderedDict()

    def logits(self, tokens: Sequence[int], batch: Batch) -> Tensor | None:
        """Return logits [R, V] of a batch's rows, or None if it must run as a plain step.

        The logits are valid until the next call. The rows' KV is in their slots then, as after a
        plain step.
        """
        bucket = Bucket.of(batch)
        if bucket is None:
            return None
        embedded = self._decoder.embed(tokens)
        known = self._graphs.get(bucket)
        if known is not None:
            self._graphs.move_to_end(bucket)
            step, replay = known
            step.fill(embedded, batch.segments)
            return replay()[: len(tokens)]
        return self._capture_first(bucket, embedded, batch)

    def _capture_first(
        self, bucket: Bucket, embedded: Sequence[Tensor], batch: Batch
    ) -> Tensor | None:
        """Capture the graph of a bucket, replay it and return the logits; None if that fails."""
        if self._is_refused:
            return None
        while len(self._graphs) >= MAX_GRAPHS:
            self._graphs.popitem(last=False)
        try:
            step = PaddedStep(self._decoder, self._pool, bucket)
            step.fill(embedded, batch.segments)  # capturing runs the step once
            replay = self._capture(step.run)
            logits = replay()
        except RuntimeError as error:  # out of memory, or an operation that no graph can hold
            self._is_refused = True
            log.warning("draft steps of %s run without a CUDA graph: %s", bucket, error)
            return None
        finally:
            self.num_captured += 1
        self._graphs[bucket] = step, replay
        return logits[: len(embedded[0])]


def graphed_steps(decoder: Decoder, pool: PagePool, capture: Capture | None) -> GraphedSteps | None:
    """Return graphs for the draft steps of this decoder, or None if it cannot have any.

    A decoder whose rope frequencies depend on the length has none: they are chosen for each step,
    which a graph cannot do.
    """
    if capture is None or decoder.strict or decoder.original_length is not None:
        return None
    return GraphedSteps(decoder, pool, capture)


def _next_power(count: int, least: int) -> int:
    """Return the smallest power of two that is not below either."""
    return max(least, 1 << (count - 1).bit_length() if count > 1 else 1)
