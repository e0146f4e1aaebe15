"""Draft steps as CUDA graphs, which launch hundreds of small kernels at once.

A draft step is limited by its kernel launches, not by its arithmetic. A graph launches all kernels
at once but has fixed shapes and addresses. So a step is padded to a bucket of rows and of visible
KV slots, its inputs are copied to the addresses that the graph reads, and one graph serves all
steps of a bucket.

All graphs are captured at load. A capture waits for the device and gives the allocator's cache back
to the driver, which would stop a pass that weights are streamed for.

Rows of several sequences share one padded step, with one list of the slots that are read and a
mask of which row attends to which slot. Padding rows repeat the last row, which writes the same
values to the same slot again; padding slots are that row's slot, hidden by the mask. So a step
reads and writes only its own memory.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from engine.kv.page_pool import PAGE, PagePool
from engine.messages import LoadProgress, ReportProgress
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.segment import Segment
from engine.spec import TILE
from engine.streaming.device import Capture, Work

log = logging.getLogger(__name__)

MIN_KV = 256  # visible slots of the smallest bucket
MAX_KV = 1 << 15  # with more slots attention takes longer than the kernel launches
# Rows of a padded step. The products of low-bit weights cost the same for 1 to 16 rows, because one
# tile of the tensor cores has 16; a step of 64 rows reads such weights more than once.
ROW_COUNTS = (16, 32, TILE)
GRAPH_BYTES = 4 << 20  # of the kernels of one graph, estimated: a node takes one to two KiB


@dataclass(frozen=True)
class Bucket:
    """The shapes of a padded step."""

    rows: int  # one of ROW_COUNTS
    kv: int  # slots that are read beside the rows' own; powers of two from MIN_KV

    @classmethod
    def of(cls, batch: Batch) -> "Bucket | None":
        """Return the smallest bucket that holds the batch; None for a batch that is too large."""
        rows = next((count for count in ROW_COUNTS if count >= len(batch.rows)), None)
        kv = _kv_size(sum(s.start + s.num_scratch for s in batch.segments))
        return cls(rows, kv) if rows is not None and kv <= MAX_KV else None


def all_buckets(num_slots: int) -> list[Bucket]:
    """Return the buckets of all steps over a KV cache of this many slots, the largest first.

    Graphs share their memory, so smaller ones find room in what larger ones have taken.
    """
    kv, sizes = min(_kv_size(num_slots), MAX_KV), list[int]()
    while kv >= MIN_KV:
        sizes.append(kv)
        kv //= 2
    return [Bucket(rows, kv) for kv in sizes for rows in reversed(ROW_COUNTS)]


class PaddedStep:
    """A step of the draft model whose inputs have fixed shapes and addresses."""

    def __init__(self, decoder: Decoder, pool: PagePool, bucket: Bucket, slot: int = 0) -> None:
        """Take a slot of the pool that holds nothing, which runs before `fill` write."""
        rows, kv = bucket.rows, bucket.kv
        device = decoder.device
        self._decoder = decoder
        self._kv = kv
        self._inputs = [
            torch.zeros(rows, own.shape[1], dtype=own.dtype, device=device)
            for own in decoder.embed([0])
        ]
        self._slots = torch.full((kv + rows,), slot, dtype=torch.int64, device=device)
        self._positions = torch.zeros(kv + rows, dtype=torch.int64, device=device)
        # At load a row that sees nothing would give NaN.
        self._mask = torch.ones(rows, kv + rows, dtype=torch.bool, device=device)
        self._numbers = torch.arange(max(rows, kv), device=device)
        self._pool = pool
        self._segment = Segment(
            first=0,
            count=rows,
            start=0,
            slots=self._slots,
            positions=self._positions,
            mask=self._mask,
            cancelled=Event(),
        )

    def fill(self, embedded: Sequence[Tensor], segments: Sequence[Segment]) -> None:
        """Copy rows that fit the bucket and their segments to the inputs of the graph.

        Args:
            embedded: what `Decoder.embed` returned, on the device.
        """
        rows = len(embedded[0])
        for own, given in zip(self._inputs, embedded, strict=True):
            own[:rows] = given
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
        # A new batch has no masks yet: they are made within the graph, of what `fill` has copied.
        batch = Batch(self._pool, (self._segment,), range(self._segment.count), strict=False)
        hidden = self._decoder.run(inputs, positions, batch)
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
    """The graphs of one draft model, for steps of all buckets."""

    def __init__(self, decoder: Decoder, pool: PagePool, capture: Capture) -> None:
        """Make graphs for a model whose rope does not depend on length (`graphed_steps`)."""
        self._decoder = decoder
        self._pool = pool
        self._capture = capture
        self._graphs: dict[Bucket, tuple[PaddedStep, Work]] = {}

    def capture_all(self, progress: ReportProgress, slot: int = 0) -> int:
        """Capture the graphs of all buckets, and return their number.

        Buckets that cannot be captured are logged, and their steps run plainly.

        Args:
            slot: of the pool, which holds nothing: a captured step writes to it.
        """
        buckets = all_buckets(self._pool.num_pages * PAGE)
        for number, bucket in enumerate(buckets, 1):
            try:
                step = PaddedStep(self._decoder, self._pool, bucket, slot)
                self._graphs[bucket] = step, self._capture(step.run)
            except RuntimeError as error:
                log.warning("draft steps of %s run without a CUDA graph: %s", bucket, error)
                if not isinstance(error, torch.OutOfMemoryError):
                    break  # an operation that no graph can hold; where memory is short, smaller fit
            what = "capturing the draft's steps"
            progress(LoadProgress(what, number, len(buckets), "steps"))
        return len(self._graphs)

    def logits(self, embedded: Sequence[Tensor], batch: Batch) -> Tensor | None:
        """Return logits [R, V] of a batch's rows, or None if it must run as a plain step.

        The logits are valid until the next call. The rows' KV is in their slots then, as after a
        plain step.

        Args:
            embedded: what `Decoder.embed` returned for the rows, on the device.
        """
        bucket = Bucket.of(batch)
        known = None if bucket is None else self._graphs.get(bucket)
        if known is None:
            return None
        step, replay = known
        step.fill(embedded, batch.segments)
        return replay()[: len(batch.rows)]


def graphed_steps(
    decoder: Decoder,
    pool: PagePool,
    capture: Capture | None,
    progress: ReportProgress,
    slot: int = 0,
) -> GraphedSteps | None:
    """Return captured graphs for the draft steps of this decoder, or None if it cannot have any.

    A decoder whose rope frequencies depend on the length has none: they are chosen for each step,
    which a graph cannot do. Neither has one with recurrent layers, whose rows read states and
    updates of other sizes in each step.

    Args:
        pool: the draft's KV cache.
        capture: records steps as graphs; None where the device has none.
        progress: called after each graph.
        slot: of the pool, which holds nothing.
    """
    if capture is None or decoder.strict or decoder.original_length is not None:
        return None
    if decoder.has_recurrent_layers:
        return None
    steps = GraphedSteps(decoder, pool, capture)
    return steps if steps.capture_all(progress, slot) else None


def _kv_size(slots: int) -> int:
    """Return the smallest power of two that is neither below `slots` nor below `MIN_KV`."""
    return max(MIN_KV, 1 << (slots - 1).bit_length() if slots > 1 else 1)
