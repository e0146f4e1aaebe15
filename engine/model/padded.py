"""Short rows of several sequences in one attention product: each padded to the longest.

One product of all sequences costs a few launches; one for each sequence costs as many times more,
and a draft's steps are made of little else.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.model.segment import Segment

MOST_ROWS = 64  # of one sequence: longer ones keep the device busy by themselves
MOST_WASTE = 2.0  # slots read, padding among them, over those that are wanted


@dataclass(frozen=True)
class Padded:
    """B sequences of a batch, r rows each that see n slots each, padding included.

    Padding rows repeat a sequence's first row, padding slots its first slot, which no row sees.
    """

    rows: Tensor  # [B * r] int64: which of the batch's rows
    places: Tensor  # [rows of the batch] int64: where each row's result is among B * r
    slots: Tensor  # [B * n] int64, read
    own_slots: Tensor  # [rows of the batch] int64, written
    visible: Tensor  # [B, r, n] bool
    positions: Tensor  # [B, n] int64, depths in the sequence
    own_positions: Tensor  # [B, r] int64
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def mask(self, window: int | None) -> Tensor:
        """Which slots each row sees, [B, 1, r, n] bool; a sliding window counts depth."""
        mask = self._masks.get(window)
        if mask is None:
            mask = self.visible
            if window is not None:
                distance = self.own_positions[:, :, None] - self.positions[:, None]
                mask = mask & (distance < window)
            mask = self._masks[window] = mask[:, None]
        return mask


def pad(segments: Sequence[Segment]) -> Padded | None:
    """The whole rows of a batch's segments; None where they are few, long or too unequal."""
    lengths = [len(segment.slots) for segment in segments]
    count, most = max(segment.count for segment in segments), max(lengths)
    if len(segments) == 1 or count > MOST_ROWS or len(segments) * most > MOST_WASTE * sum(lengths):
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
        seen = segment.seen_by(range(segment.count))
        own[:, segment.start :] = True if seen is None else seen
        visible[index, segment.count :] = visible[index, 0]
        rows += range(segment.first, segment.first + segment.count)
        rows += [segment.first] * (count - segment.count)
        places += range(index * count, index * count + segment.count)
    own_positions = torch.cat([s.positions[s.scratch :] for s in segments])
    where = torch.tensor(places, device=device)
    queries = torch.zeros(len(segments) * count, dtype=torch.int64, device=device)
    queries[where] = own_positions
    return Padded(
        rows=torch.tensor(rows, device=device),
        places=where,
        slots=slots.view(-1),
        own_slots=torch.cat([s.slots[s.start + s.scratch :] for s in segments]),
        visible=visible,
        positions=positions,
        own_positions=queries.view(len(segments), count),
    )
