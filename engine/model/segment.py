"""The description of one sequence's rows in a pass, and of what a layer lets them see."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.recurrent.branch import NodeRows
from engine.recurrent.states import SequenceState
from engine.transfer import upload_all


@dataclass(frozen=True)
class Reach:
    """How far back the rows of a layer see.

    Args:
        size: a number of positions; None: rows see all earlier ones.
        is_chunk: whether a row sees its own chunk of `size` positions, and not the positions at
            less than that distance.
    """

    size: int | None = None
    is_chunk: bool = False

    def near(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """Return which of the earlier positions `keys` the rows at positions `queries` see, bool.

        The two are broadcast to the shape of the result. Return None if rows see all of them.
        """
        if self.size is None:
            return None
        if self.is_chunk:
            return queries // self.size == keys // self.size
        return queries - keys < self.size


@dataclass(frozen=True)
class Segment:
    """The rows of one sequence in a pass, and what each of them sees.

    The slots of the sequence are, in this order: the stored prefix, which every row sees; scratch
    rows that earlier steps of a draft have written; and the rows of this pass.

    Args:
        first: the number of the sequence's first row in the pass.
        count: the number of its rows.
        start: the number of tokens in the stored prefix.
        slots: numbers of slots in the KV cache, [start + num_scratch + count] int64.
        positions: positions in the sequence of the scratch rows and of this pass's rows,
            [num_scratch + count] int64. Sliding windows count them. Rows of a tree at the same
            depth have the same position.
        mask: which scratch rows and rows of this pass each row sees,
            [count, num_scratch + count] bool; None if each row sees all rows before it and itself
            (a chain).
        cancelled: set when the client has left.
        is_long: whether the rows use the long rope frequencies (`rope.py`).
        state: the states of the sequence in recurrent layers, which its rows change; or, of a
            draft, how its rows read them. None if there are no such layers.
        known_parents: what `parents` returns, if it has been found while the mask was on the host.
    """

    first: int
    count: int
    start: int
    slots: Tensor
    positions: Tensor
    mask: Tensor | None
    cancelled: Event
    is_long: bool = False
    state: SequenceState | NodeRows | None = None
    known_parents: Sequence[int] | None = None

    @property
    def num_scratch(self) -> int:
        """The number of scratch rows written by earlier steps of a draft."""
        return len(self.positions) - self.count

    def parents(self) -> Sequence[int]:
        """Return the parent of each row of this pass among them; -1: it follows the prefix."""
        if self.known_parents is not None:
            return self.known_parents
        if self.mask is None:
            return list(range(-1, self.count - 1))
        # The last of a row's ancestors is its parent, since a parent comes before its children.
        numbers = torch.arange(self.count)
        seen = self.mask[:, self.num_scratch :].cpu().tril(-1)
        found: list[int] = torch.where(seen, numbers, -1).amax(-1).tolist()
        return found

    def visible_slots(self, rows: range) -> Tensor | None:
        """Return which slots after the prefix some rows see, [rows, num_scratch + rows.stop] bool.

        Slots after the last of these rows are left out. Return None if each row sees all of them.
        """
        end = self.num_scratch + rows.stop
        if self.mask is not None:
            return self.mask[rows.start : rows.stop, :end]
        if len(rows) == 1:
            return None
        numbers = torch.arange(end, device=self.slots.device)
        return numbers <= numbers[self.num_scratch + rows.start :, None]

    def visible_keys(self, rows: range, reach: Reach) -> Tensor | None:
        """Return which keys some rows see in a layer of this reach, [rows, keys] bool.

        The keys are those of the prefix, and of the slots after it up to the last of these rows.
        Return None if each row sees all of them.
        """
        own = self.visible_slots(rows)
        if own is not None:
            own = F.pad(own, (self.start, 0), value=True)
        if reach.size is None:
            return own
        end = self.num_scratch + rows.stop
        prefix = torch.arange(self.start, device=self.slots.device)
        positions = torch.cat([prefix, self.positions[:end]])
        queries = self.positions[self.num_scratch + rows.start : end]
        near = reach.near(queries[:, None], positions)
        return near if own is None or near is None else near & own


def upload_segments(
    segments: Sequence[Segment],
    others: Sequence[Tensor],
    *,
    before: Sequence[Tensor],
    device: torch.device,
) -> tuple[tuple[Segment, ...], list[Tensor]]:
    """Return segments whose tensors lie on the host, and other tensors, on the device, by one copy.

    Args:
        before: for each segment, slots that lie on the device and precede the segment's own.
    """
    own = [[s.slots, s.positions, *([] if s.mask is None else [s.mask])] for s in segments]
    moved = iter(upload_all([*others, *(tensor for part in own for tensor in part)], device))
    moved_others = [next(moved) for _ in others]
    placed = tuple(
        replace(
            segment,
            slots=torch.cat([first, next(moved)]),
            positions=next(moved),
            mask=None if segment.mask is None else next(moved),
            # A mask on a device would have to be waited for.
            known_parents=None if segment.state is None else segment.parents(),
        )
        for segment, first in zip(segments, before, strict=True)
    )
    return placed, moved_others
