"""One sequence's rows in a pass."""

from dataclasses import dataclass
from threading import Event

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
