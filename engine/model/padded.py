"""Padding of several sequences to the longest one, so that one attention product serves all.

One product for all sequences takes a few kernel launches. One product for each sequence takes that
many launches for each, and launches are most of the time of a draft's steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.model.fused import fold_mask
from engine.model.segment import Reach, Segment

MAX_SEGMENT_ROWS = 64  # more rows of one sequence keep the device busy without padding
MAX_PADDING_RATIO = 2.0  # slots that are read, with padding, over slots that are needed
MAX_SLOTS = 1 << 15  # that are read, with padding: with more, launches are a small part of the time


@dataclass(frozen=True)
class PaddedBatch:
    """The index tensors for one attention product over B sequences.

    Each sequence has r rows that see n slots, padding included. Padding rows repeat the first row
    of a sequence. Padding slots repeat its first slot, and no row sees them.
    """

    rows: Tensor  # [B * r] int64: numbers of rows of the batch
    places: Tensor  # [rows of the batch] int64: the index of each row's result among B * r
    slots: Tensor  # [B * n] int64: the slots to read
    own_slots: Tensor  # [rows of the batch] int64: the slots to write
    visible: Tensor  # [B, r, n] bool
    positions: Tensor  # [B, n] int64: the position of each slot's token in its sequence
    own_positions: Tensor  # [B, r] int64: the position of each row in its sequence
    _masks: dict[tuple[Reach, int, torch.dtype], Tensor] = field(default_factory=dict)

    def mask(self, reach: Reach, group: int, dtype: torch.dtype) -> Tensor:
        """Return the mask that `fold_mask` makes of what each row sees, [B, 1, group * r, n].

        Masks are computed once for each reach.

        Args:
            group: query heads that share a key head.
            dtype: the type of the queries.
        """
        key = reach, group, dtype
        if key not in self._masks:
            near = reach.near(self.own_positions[:, :, None], self.positions[:, None])
            visible = self.visible if near is None else self.visible & near
            self._masks[key] = fold_mask(visible[:, None], group, dtype)
        return self._masks[key]


def pad_segments(segments: Sequence[Segment]) -> PaddedBatch | None:
    """Return all rows of the segments, padded for one attention product.

    Return None where separate products are better: for a single segment, for a segment of more than
    `MAX_SEGMENT_ROWS` rows, and where the slots would exceed `MAX_PADDING_RATIO` or `MAX_SLOTS`.
    """
    lengths = [len(segment.slots) for segment in segments]
    count, most = max(segment.count for segment in segments), max(lengths)
    if len(segments) == 1 or count > MAX_SEGMENT_ROWS:
        return None
    if len(segments) * most > MAX_PADDING_RATIO * sum(lengths):
        return None
    if len(segments) * most > MAX_SLOTS:
        return None
    device = segments[0].slots.device
    shape = len(segments), most
    slots = torch.empty(shape, dtype=torch.int64, device=device)
    positions = torch.zeros(shape, dtype=torch.int64, device=device)
    visible = torch.zeros(len(segments), count, most, dtype=torch.bool, device=device)
    numbers = torch.arange(most, device=device)
    rows: list[int] = []
    places: list[int] = []
    for index, (segment, length) in enumerate(zip(segments, lengths, strict=True)):
        slots[index, :length] = segment.slots
        slots[index, length:] = segment.slots[0]
        positions[index, : segment.start] = numbers[: segment.start]
        positions[index, segment.start : length] = segment.positions
        own = visible[index, : segment.count, :length]
        own[:, : segment.start] = True
        seen = segment.visible_slots(range(segment.count))
        own[:, segment.start :] = True if seen is None else seen
        visible[index, segment.count :] = visible[index, 0]
        rows += range(segment.first, segment.first + segment.count)
        rows += [segment.first] * (count - segment.count)
        places += range(index * count, index * count + segment.count)
    own_positions = torch.cat([s.positions[s.num_scratch :] for s in segments])
    where = torch.tensor(places, device=device)
    queries = torch.zeros(len(segments) * count, dtype=torch.int64, device=device)
    queries[where] = own_positions
    return PaddedBatch(
        rows=torch.tensor(rows, device=device),
        places=where,
        slots=slots.view(-1),
        own_slots=torch.cat([s.slots[s.start + s.num_scratch :] for s in segments]),
        visible=visible,
        positions=positions,
        own_positions=queries.view(len(segments), count),
    )
