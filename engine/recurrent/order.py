"""The order in which rows change the states of their sequences: a chain, or the nodes of a tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.compiled.recurrence import STATE
from engine.transfer import upload
from engine.triton_kernels.recurrence import DeviceWalk

ROOT = STATE  # in the order of one sequence: the state that the rows of the pass follow


@dataclass(frozen=True)
class Order:
    """How some rows of a sequence are computed, with the earlier rows that this takes.

    Args:
        earlier: rows of earlier tiles that are ancestors of these rows, ascending. Their states
            were not kept, so they are computed again.
        places: the rows that each tap of the convolution sees, for the earlier rows and these,
            [rows, taps] int64: numbers in the window of the convolution and all rows after it.
        sources, targets: those of a `Walk`, for the earlier rows and these.
    """

    earlier: tuple[int, ...]
    places: Any
    sources: Any
    targets: Any

    def walk(self, rows: Any, slot: int) -> "Walk":
        """Return the walk of the rows.

        Args:
            rows: the numbers of the earlier rows and of these among those that are walked.
            slot: the number of the sequence's state in the layer.
        """
        sources = np.where(self.sources == ROOT, STATE - slot, self.sources)
        targets = np.where(self.targets == ROOT, STATE - slot, self.targets)
        return Walk(rows, sources, targets, np.array([0, len(rows)]))


class Taps:
    """The rows that each tap of a convolution sees.

    Args:
        places: their numbers in the source of the convolution, [rows, taps] int64.
    """

    def __init__(self, places: Any) -> None:
        self.places = np.ascontiguousarray(places)
        self.least = int(places.min(initial=0))
        self.most = int(places.max(initial=-1))
        self._moved: dict[torch.device, Tensor] = {}

    def on(self, device: torch.device) -> Tensor:
        """Return the numbers on a device, where they are copied once."""
        if device not in self._moved:
            self._moved[device] = upload(torch.from_numpy(self.places), device)
        return self._moved[device]


@dataclass(frozen=True)
class Walk:
    """Which states rows change, one after another. Arrays are of int64.

    A number of a state from 0 on is a state that the walk keeps while it runs; `STATE` - n is
    state n of the layer. Rows of different sequences share no state.

    Args:
        rows: the numbers of the rows, in the order in which they are computed.
        sources, targets: for each of them the state that it changes, and that is the result.
        starts: where the rows of each sequence begin in `rows`, and where those of the last end.
    """

    rows: Any
    sources: Any
    targets: Any
    starts: Any

    @cached_property
    def num_kept(self) -> int:
        """The number of states that the walk keeps while it runs."""
        return int(self.targets.max(initial=-1)) + 1

    def on(self, device: torch.device) -> DeviceWalk:
        """Return the walk on a CUDA device, where it is copied once."""
        if device not in self._moved:
            own = self.rows, self.sources, self.targets, self.starts
            self._moved[device] = DeviceWalk(*own, self.num_kept, device)
        return self._moved[device]

    @cached_property
    def _moved(self) -> dict[torch.device, DeviceWalk]:
        return {}

    @classmethod
    def join(cls, walks: Sequence["Walk"]) -> "Walk":
        """Return the walk of the rows of several sequences."""
        ends = np.cumsum([0, *(len(own.rows) for own in walks)], dtype=np.int64)
        return cls(
            np.concatenate([own.rows for own in walks]),
            np.concatenate([own.sources for own in walks]),
            np.concatenate([own.targets for own in walks]),
            ends,
        )


def chain_walk(rows: range, slot: int, copies: Sequence[tuple[int, int]] = ()) -> Walk:
    """Return the walk of rows that follow each other and change a state at once.

    Args:
        slot: the number of the state in the layer.
        copies: after how many of the rows the state is to be copied, ascending, and the number of
            the state that is to be the copy. The state itself is not changed if that is after the
            last row.
    """
    targets = np.full(len(rows), STATE - slot, np.int64)
    first = 0
    for edge, copy in copies:
        targets[first:edge] = STATE - copy
        first = edge
    sources = np.array([STATE - slot, *targets[:-1]][: len(rows)], np.int64)
    return Walk(np.arange(rows.start, rows.stop), sources, targets, np.array([0, len(rows)]))


def locate(
    places: Any, window: int, stashed: int, first_window: int, first_stashed: int, first_row: int
) -> Any:
    """Return where rows of a sequence are, given their places as in `Order`.

    Args:
        window: the rows of the window.
        stashed: the rows after the window that are stored at `first_stashed`. The rows after these
            are stored at `first_row`, and the window at `first_window`.
    """
    rows = places - window
    later = np.where(rows < stashed, first_stashed + rows, first_row + rows - stashed)
    return np.where(rows < 0, first_window + places, later)


def find_order(parents: Sequence[int], rows: range, taps: int) -> Order:
    """Return the order of some rows of a tree.

    Args:
        parents: the parent of each row of the tree, which is an earlier row; -1: none.
        rows: the rows to compute.
        taps: of the convolution.
    """
    needed: set[int] = set()
    for row in rows:
        row = parents[row]
        while row >= 0 and row not in needed:
            if row < rows.start:
                needed.add(row)
            row = parents[row]
    earlier = sorted(needed)
    walked = [*earlier, *rows]
    places = np.array([_path(parents, row, taps) for row in walked], np.int64)
    number = {row: index for index, row in enumerate(walked)}
    sources, targets = _allot([number.get(parents[row], ROOT) for row in walked])
    return Order(tuple(earlier), places.reshape(-1, taps), sources, targets)


def chain_places(rows: int, taps: int) -> Any:
    """Return the places, as in `Order`, of rows that follow each other."""
    return np.arange(rows)[:, None] + np.arange(taps)


def _path(parents: Sequence[int], row: int, taps: int) -> list[int]:
    """Return the places of the last ancestors of a row, and of itself."""
    window = taps - 1
    path = []
    for _ in range(taps):
        path.append(window + row)
        row = parents[row] if row >= 0 else row - 1  # those below 0 are in the window
    return path[::-1]


def _allot(parents: Sequence[int]) -> tuple[Any, Any]:
    """Return sources and targets of a walk. A state is overwritten by its last child's."""
    last = {parent: row for row, parent in enumerate(parents)}
    sources: list[int] = []
    targets: list[int] = []
    free: list[int] = []
    slots = 0
    for row, parent in enumerate(parents):
        source = ROOT if parent == ROOT else targets[parent]
        if parent != ROOT and last[parent] == row:
            target = source
        elif free:
            target = free.pop()
        else:
            target, slots = slots, slots + 1
        if row not in last:
            free.append(target)
        sources.append(source)
        targets.append(target)
    return np.array(sources, np.int64), np.array(targets, np.int64)
