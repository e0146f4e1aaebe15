"""Draft steps as CUDA graphs, which launch a thousand small kernels as one.

A draft step is bound by its launches, not by its arithmetic. A graph launches them all at once but
has fixed shapes and addresses, so a step is padded to a bucket of rows and of visible KV slots, its
inputs are copied to where the graph expects them, and one graph serves every step of a bucket.

Rows of several sequences share one padded step, with one list of the slots that are read and a
mask of which row attends to which slot. Padding repeats the last row, which writes the same values
to the same slot again, and reads that row's slot where the mask hides it: so a step uses only its
own memory.
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

LEAST_KV = 256  # visible slots of the smallest bucket
MOST_KV = 1 << 15  # with more slots attention takes longer than the launches
MOST_GRAPHS = 24  # at a time; each holds a few MiB of kernels and its inputs


@dataclass(frozen=True)
class Bucket:
    """Shapes of a padded step."""

    rows: int  # 1, 2, 4, ... TILE
    kv: int  # slots that are read beside the rows' own; powers of two from LEAST_KV

    @classmethod
    def of(cls, batch: Batch) -> "Bucket | None":
        """Return the smallest that holds the batch; None for a very long prompt or context."""
        rows = _power(len(batch.rows), 1)
        kv = _power(sum(s.start + s.scratch for s in batch.segments), LEAST_KV)
        return cls(rows, kv) if rows <= TILE and kv <= MOST_KV else None


class PaddedStep:
    """A step of the draft over inputs whose addresses do not change."""

    def __init__(self, decoder: Decoder, pool: PagePool, bucket: Bucket) -> None:
        rows, kv = bucket.rows, bucket.kv
        device, weight = decoder.device, decoder.embedding.weight
        self._decoder = decoder
        self._kv = kv
        self._hidden = torch.zeros(1, rows, weight.shape[1], dtype=weight.dtype, device=device)
        self._slots = torch.zeros(kv + rows, dtype=torch.int64, device=device)
        self._positions = torch.zeros(kv + rows, dtype=torch.int64, device=device)
        self._mask = torch.zeros(rows, kv + rows, dtype=torch.bool, device=device)
        self._numbers = torch.arange(max(rows, kv), device=device)
        segment = Segment(0, rows, 0, self._slots, self._positions, self._mask, Event())
        self._batch = Batch(pool, (segment,), range(rows), strict=False)

    def fill(self, hidden: Tensor, segments: Sequence[Segment]) -> None:
        """Copy the embedded rows [n, D] of these segments, which fit the bucket, to the inputs."""
        rows = len(hidden)
        self._hidden[0, :rows].copy_(hidden, non_blocking=True)
        self._mask.fill_(False)
        first = 0  # of the segment's visible slots
        for segment in segments:
            self._place(segment, first)
            first += segment.start + segment.scratch
        last = self._kv + rows - 1
        for inputs in (self._slots, self._positions):
            inputs[first : self._kv] = inputs[last : last + 1]
            inputs[last + 1 :] = inputs[last : last + 1]
        self._hidden[0, rows:] = self._hidden[0, rows - 1]
        self._mask[rows:] = self._mask[rows - 1]

    def run(self) -> Tensor:
        """Compute logits [rows of the bucket, V]; the first rows are those of `fill`."""
        # A layer overwrites its input.
        positions = self._positions[None, self._kv :]
        hidden = self._decoder.run(self._hidden.clone(), positions, self._batch)
        with self._decoder.head() as head:
            return head(hidden)

    def _place(self, segment: Segment, first: int) -> None:
        """Fill in a segment's slots, positions and mask; its slots begin at column `first`."""
        before = segment.start + segment.scratch
        seen = slice(first, first + before)
        scratch = slice(first + segment.start, first + before)
        rows = slice(segment.first, segment.first + segment.count)
        own = slice(self._kv + rows.start, self._kv + rows.stop)
        self._slots[seen] = segment.slots[:before]
        self._slots[own] = segment.slots[before : before + segment.count]
        self._positions[first : scratch.start] = self._numbers[: segment.start]
        self._positions[scratch] = segment.positions[: segment.scratch]
        self._positions[own] = segment.positions[segment.scratch :]
        self._mask[rows, seen] = True
        mask = segment.seen_by(range(segment.count))
        if mask is None:
            self._mask[rows, own] = True
        else:
            self._mask[rows, scratch] = mask[:, : segment.scratch]
            self._mask[rows, own] = mask[:, segment.scratch :]


class GraphedSteps:
    """The graphs of one draft model, captured when a bucket is first needed."""

    def __init__(self, decoder: Decoder, pool: PagePool, capture: Capture) -> None:
        """Make graphs for a model whose rope does not depend on length (`graphed_steps`)."""
        self.num_captured = 0  # since the start; the time of a step that captured is not typical
        self._decoder = decoder
        self._pool = pool
        self._capture = capture
        self._refused = False
        self._graphs: OrderedDict[Bucket, tuple[PaddedStep, Work]] = OrderedDict()

    def logits(self, tokens: Sequence[int], batch: Batch) -> Tensor | None:
        """Return logits [R, V] of a batch's rows; None if it must run as a plain step.

        They are valid until the next call. As in a plain step, the rows' KV is then in their slots.
        """
        bucket = Bucket.of(batch)
        if bucket is None:
            return None
        hidden = self._decoder.embed(tokens)
        known = self._graphs.get(bucket)
        if known is not None:
            self._graphs.move_to_end(bucket)
            step, replay = known
            step.fill(hidden, batch.segments)
            return replay()[: len(tokens)]
        return self._first(bucket, hidden, batch)

    def _first(self, bucket: Bucket, hidden: Tensor, batch: Batch) -> Tensor | None:
        """Capture a bucket's graph and replay it."""
        if self._refused:
            return None
        while len(self._graphs) >= MOST_GRAPHS:
            self._graphs.popitem(last=False)
        try:
            step = PaddedStep(self._decoder, self._pool, bucket)
            step.fill(hidden, batch.segments)  # to capture runs it once
            replay = self._capture(step.run)
            logits = replay()
        except RuntimeError as error:  # of memory, or of an operation no graph can hold
            self._refused = True
            log.warning("draft steps of %s run without a CUDA graph: %s", bucket, error)
            return None
        finally:
            self.num_captured += 1
        self._graphs[bucket] = step, replay
        return logits[: len(hidden)]


def graphed_steps(decoder: Decoder, pool: PagePool, capture: Capture | None) -> GraphedSteps | None:
    """Return graphs for the draft steps of this decoder; None if it has none.

    Rope frequencies that depend on the length are chosen anew for each step, which no graph can do.
    """
    if capture is None or decoder.strict or decoder.original_length is not None:
        return None
    return GraphedSteps(decoder, pool, capture)


def _power(count: int, least: int) -> int:
    """Return the smallest power of two that is not below either."""
    return max(least, 1 << (count - 1).bit_length() if count > 1 else 1)
