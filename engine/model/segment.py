"""One sequence's rows in a pass."""

from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """Where one sequence's rows are, and what they see.

    The sequence's slots are, in order: `start` tokens of the stored prefix, which every row sees;
    scratch rows written by earlier passes of the draft; the rows of this pass. `mask` [count,
    scratch + count] tells which of the latter two a row sees; None means a chain (each row sees
    all before it). `positions` [scratch + count] are depths in the sequence, not slots: a sliding
    window counts them.
    """

    first: int  # its first row in the pass
    count: int  # how many rows
    start: int
    slots: Tensor  # [start + scratch + count] int64
    positions: Tensor
    mask: Tensor | None
    cancelled: Event
    is_long: bool = False  # whether its rows use the long rope frequencies

    @property
    def scratch(self) -> int:
        return len(self.positions) - self.count

    def seen_by(self, rows: range) -> Tensor | None:
        """Return which of the slots after the prefix some rows see, up to their own last one.

        The mask is [rows, scratch + rows.stop] bool; None: each row sees all of them.
        """
        end = self.scratch + rows.stop
        if self.mask is not None:
            return self.mask[rows.start : rows.stop, :end]
        if len(rows) == 1:
            return None
        numbers = torch.arange(end, device=self.slots.device)
        return numbers <= numbers[self.scratch + rows.start :, None]
