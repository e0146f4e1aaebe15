"""The order in which the rows of a sequence change its state: a chain, or the nodes of a tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine.compiled.recurrence import ROOT


@dataclass(frozen=True)
class Order:
    """How some rows of a sequence are computed, with the earlier rows that this takes.

    Args:
        earlier: rows of earlier tiles that are ancestors of these rows, ascending. Their states
            were not kept, so they are computed again.
        places: the rows that each tap of the convolution sees, for the earlier rows and these,
            [rows, taps] int64: numbers in the window of the convolution and all rows after it.
        sources, targets: those of `steps.walk`, for the earlier rows and these.
    """

    earlier: tuple[int, ...]
    places: Any
    sources: Any
    targets: Any


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


def in_place(rows: int) -> Any:
    """Return sources or targets of rows that follow each other and change the first state."""
    return np.full(rows, ROOT, np.int64)


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
