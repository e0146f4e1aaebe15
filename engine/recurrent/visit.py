"""The rows of some sequences in a recurrent layer: one tile of a pass.

First the rows go through the convolution, then, after the model's own code, through the recurrence.
Each of these is one call for all sequences. The numbers of rows and states are the same in all
layers, so they are found once for a tile.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.recurrent.order import Order, Taps, Walk, chain_places, chain_walk, locate
from engine.recurrent.states import LayerMemory, Replay, SequenceState, StatePool
from engine.recurrent.steps import make_inputs, walk


@dataclass(frozen=True)
class Part:
    """Some rows of a sequence.

    Args:
        state: the states of the sequence.
        start: the tokens of the sequence before the pass.
        rows: the numbers of the rows among those of the sequence in the pass.
        order: how they are computed; None: they follow each other and change the states at once.
    """

    state: SequenceState
    start: int
    rows: range
    order: Order | None

    @property
    def earlier(self) -> tuple[int, ...]:
        """Return the rows of earlier tiles that are computed again."""
        return () if self.order is None else self.order.earlier

    @property
    def num_stashed(self) -> int:
        """The number of rows of earlier tiles whose inputs are in the stash."""
        return 0 if self.order is None else self.rows.start

    def copies(self) -> list[tuple[int, int]]:
        """Return when and where to the states are copied, as in `chain_walk`."""
        first = self.start + self.rows.start
        own = [(length - first, slot) for length, slot in sorted(self.state.captures.items())]
        return [(edge, slot) for edge, slot in own if 0 < edge <= len(self.rows)]

    def stash(self, rows: Sequence[int]) -> list[int]:
        """Return where rows of the sequence are in the stash of all sequences."""
        first = self.state.stash * self.state.pool.stash_rows
        return [first + row for row in rows]

    def walk(self, first_earlier: int, first: int) -> Walk:
        """Return the walk of the rows, given the numbers of the first earlier one and of the first.

        These are their places among the rows of all sequences in the tile.
        """
        if self.order is None:
            own = range(first, first + len(self.rows))
            return chain_walk(own, self.state.slot, self.copies())
        count = len(self.earlier)
        numbers = np.arange(count + len(self.rows))
        rows = np.where(numbers < count, first_earlier + numbers, first + numbers - count)
        return self.order.walk(rows, self.state.slot)


class Visit:
    """The rows of a tile in the recurrent layers whose convolutions have the same number of taps.

    Args:
        parts: the rows of each sequence, one after another.
    """

    def __init__(self, parts: Sequence[Part], taps: int) -> None:
        self._parts, self._taps = parts, taps
        self._pool: StatePool = parts[0].state.pool
        self._replays: dict[tuple[SequenceState, ...], Replay] = {}
        self._walk = _join_walks(parts)
        self._num_earlier = sum(len(part.earlier) for part in parts)
        places, ends, owners = self._find_places()
        both = [np.split(own, [len(p.earlier)]) for p, own in zip(parts, places, strict=True)]
        self._earlier, self._own = (Taps(np.concatenate(p)) for p in zip(*both, strict=True))
        stashed = [row for part in parts for row in [part.order is not None] * len(part.rows)]
        self._all_stashed, self._any_stashed = all(stashed), any(stashed)
        numbers: list[Any] = [
            [part.state.slot for part in parts],
            [row for part in parts for row in part.stash(range(part.num_stashed))],
            [row for part in parts for row in part.stash(part.earlier)],
            [row for part in parts if part.order is not None for row in part.stash(part.rows)],
            np.flatnonzero(stashed),
            owners,
            np.array(ends).reshape(len(owners), taps - 1),
        ]
        (
            self._slots,
            self._before,  # all stashed rows of earlier tiles
            self._again,  # those of them that are computed again
            self._kept,  # where rows are stashed
            self._stashed,  # the numbers of these rows
            self._owners,  # states whose windows change
            self._ends,  # the places of these windows
        ) = self._pool.upload(numbers)

    def convolve(self, layer: int, rows: Tensor) -> Tensor:
        """Return the convolutions [rows, C] of rows [rows, C], which see those before them."""
        memory = self._pool.layers[layer]
        self._catch_up(layer)
        if self._any_stashed:
            memory.flat_rows[self._kept] = self._select(rows)
        source = torch.cat([self._source(memory), rows])
        convolved = memory.convolve(source, self._own)
        for part in self._changing():
            part.state.begin_change(layer)
        if len(self._owners):
            memory.windows[self._owners] = source[self._ends]
        if not memory.shape.has_state:
            self._end_change(layer)
        return convolved

    def scan(self, layer: int, query: Tensor, key: Tensor, value: Tensor, gates: Tensor) -> Tensor:
        """Return the output [rows, H, width] of the rows' recurrence, float32.

        Args:
            query, key, value, gates: those of `steps.make_inputs`.
        """
        memory = self._pool.layers[layer]
        shape = memory.shape
        inputs = make_inputs(shape, query, key, value, gates)
        if self._any_stashed:
            memory.flat_gates[self._kept] = self._select(gates)
        if self._num_earlier:
            convolved = memory.convolve(self._source(memory), self._earlier)
            again = memory.flat_gates[self._again]
            inputs = make_inputs(shape, *shape.split(convolved), again).followed_by(inputs)
        out = walk(memory.states, inputs, self._walk)
        for part in self._changing():
            for edge, slot in part.copies():
                if edge == len(part.rows):
                    memory.states[part.state.slot] = memory.states[slot]
        self._end_change(layer)
        return out[self._num_earlier :, :, : shape.width]

    def _catch_up(self, layer: int) -> None:
        """Bring the states of sequences whose first rows these are up to the accepted rows."""
        first = [part.state for part in self._parts if part.rows.start == 0]
        behind = tuple(state for state in first if state.is_behind(layer))
        if behind:
            if behind not in self._replays:
                self._replays[behind] = Replay(self._pool, behind, self._taps)
            self._replays[behind].run(layer)

    def _changing(self) -> list[Part]:
        return [part for part in self._parts if part.order is None]

    def _end_change(self, layer: int) -> None:
        for part in self._changing():
            part.state.end_change(layer, part.start + part.rows.stop)

    def _select(self, values: Tensor) -> Tensor:
        """Return the values of those rows that are stashed."""
        return values if self._all_stashed else values[self._stashed]

    def _source(self, memory: LayerMemory) -> Tensor:
        """Return the windows and the stashed rows of earlier tiles, [rows, C]."""
        windows = memory.windows[self._slots].flatten(0, 1)
        if not len(self._before):
            return windows
        return torch.cat([windows, memory.flat_rows[self._before]])

    def _find_places(self) -> tuple[list[Any], list[Any], list[int]]:
        """Return where the rows that each tap sees are in the source of the convolution.

        The source is what `_source` returns, and these rows. Return the places for each part, for
        its earlier rows and these; then those of windows that change, and the numbers of their
        states.
        """
        parts, window = self._parts, self._taps - 1
        before = window * len(parts)
        first = before + sum(part.num_stashed for part in parts)
        places, ends, owners = [], [], []
        for number, part in enumerate(parts):
            count = len(part.rows)
            chain = np.arange(window + part.num_stashed + count)
            where = locate(chain, window, part.num_stashed, number * window, before, first)
            if part.order is None:
                places.append(where[chain_places(count, self._taps)])
                for edge, slot in [*part.copies(), (count, part.state.slot)]:
                    ends.append(where[edge : edge + window])
                    owners.append(slot)
            else:
                places.append(where[part.order.places])
            before += part.num_stashed
            first += count
        return places, ends, owners


def _join_walks(parts: Sequence[Part]) -> Walk:
    """Return the walk of the rows of a tile. Rows that are computed again come first."""
    earlier, first, walks = 0, sum(len(part.earlier) for part in parts), []
    for part in parts:
        walks.append(part.walk(earlier, first))
        earlier += len(part.earlier)
        first += len(part.rows)
    return Walk.join(walks)
