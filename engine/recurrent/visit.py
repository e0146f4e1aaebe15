"""The rows of one sequence in a recurrent layer: one tile of a pass.

First the rows go through the convolution, then, after the model's own code, through the recurrence.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.recurrent.order import Order, chain_places, in_place
from engine.recurrent.states import LayerMemory, SequenceState
from engine.recurrent.steps import Inputs, make_inputs, walk


@dataclass(frozen=True)
class Visit:
    """Some rows of a sequence in a layer.

    Args:
        state: the states of the sequence.
        layer: the number of the layer.
        start: the tokens of the sequence before the pass.
        rows: the numbers of the rows among those of the sequence in the pass.
        order: how they are computed; None: they follow each other and change the state at once.
    """

    state: SequenceState
    layer: int
    start: int
    rows: range
    order: Order | None

    @property
    def memory(self) -> LayerMemory:
        """The memory of the layer."""
        return self.state.pool.layers[self.layer]

    def convolve(self, rows: Tensor) -> Tensor:
        """Return the convolutions [rows, C] of rows [rows, C], which see those before them."""
        state, memory = self.state, self.memory
        if self.rows.start == 0:
            state.catch_up(self.layer)
        window = memory.windows[state.slot]
        if self.order is not None:
            memory.rows[state.stash, self.rows.start : self.rows.stop] = rows
            own = self.order.places[len(self.order.earlier) :]
            return memory.convolve(self._source(), own)
        source = torch.cat([window, rows])
        convolved = memory.convolve(source, chain_places(len(rows), memory.shape.taps))
        state.begin_change(self.layer)
        for edge, slot in self._captures():
            memory.windows[slot] = source[edge : edge + len(window)]
        window.copy_(source[len(rows) :])
        if not memory.shape.has_state:
            state.end_change(self.layer, self.start + self.rows.stop)
        return convolved

    def scan(self, query: Tensor, key: Tensor, value: Tensor, gates: Tensor) -> Tensor:
        """Return the output [rows, H, width] of the rows' recurrence, float32.

        Args:
            query, key, value, gates: those of `steps.make_inputs`.
        """
        state, memory = self.state, self.memory
        root, shape = memory.states[state.slot], memory.shape
        inputs = make_inputs(shape, query, key, value, gates)
        if self.order is None:
            outputs: list[Tensor] = []
            first = 0
            for edge, slot in [*self._captures(), (len(gates), state.slot)]:
                part = inputs.rows(first, edge)
                outputs.append(walk(root, part, in_place(edge - first), in_place(edge - first)))
                if slot != state.slot:
                    memory.states[slot] = root
                first = edge
            state.end_change(self.layer, self.start + self.rows.stop)
            return torch.cat(outputs)[..., : shape.width]
        memory.gates[state.stash, self.rows.start : self.rows.stop] = gates
        earlier = list(self.order.earlier)
        if earlier:
            convolved = memory.convolve(self._source(), self.order.places[: len(earlier)])
            again = make_inputs(shape, *shape.split(convolved), memory.gates[state.stash, earlier])
            inputs = _join(again, inputs)
        out = walk(root, inputs, self.order.sources, self.order.targets)
        return out[len(earlier) :, :, : shape.width]

    def _captures(self) -> list[tuple[int, int]]:
        """Return after how many of these rows the state is copied, ascending, and where to."""
        first = self.start + self.rows.start
        own = [(length - first, slot) for length, slot in sorted(self.state.captures.items())]
        return [(edge, slot) for edge, slot in own if 0 < edge <= len(self.rows)]

    def _source(self) -> Tensor:
        """Return the window and all rows of the pass up to these, [taps - 1 + rows, C]."""
        state, memory = self.state, self.memory
        return torch.cat([memory.windows[state.slot], memory.rows[state.stash, : self.rows.stop]])


def _join(first: Inputs, second: Inputs) -> Inputs:
    """Return the inputs of some rows and of others after them."""
    query, key, value, decay = (
        torch.cat([a, b]) for a, b in zip(first[:4], second[:4], strict=True)
    )
    rate = None
    if first.rate is not None and second.rate is not None:
        rate = torch.cat([first.rate, second.rate])
    return Inputs(query, key, value, decay, rate)
