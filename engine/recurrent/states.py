"""The memory of recurrent layers: a state of each sequence, and rows that may still be dropped.

A pass does not know which rows of a tree will be accepted. So it changes no state, but keeps what
the rows do to it (the stash): the inputs of the convolution, decays and rates. The accepted rows
are then repeated: at the layer's next visit, or by `SequenceState.replay`, which needs no weights
but those of the convolution, which are kept here. Rows of a long prompt are accepted whatever comes
after them; they change the state at once, and nothing is kept of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.errors import ModelError
from engine.recurrent.order import Taps, Walk, chain_places, chain_walk, locate
from engine.recurrent.shape import LayerShape
from engine.recurrent.steps import Filter, convolve, make_inputs, walk
from engine.transfer import upload_all

_DAMAGED = -1  # the length of a state that a pass has changed only in part


class LayerMemory:
    """The memory of one layer for all sequences.

    Args:
        num_states: the states that it has room for.
        num_stashes: the sequences for whose rows it has room.
        stash_rows: the rows of each of these.
        dtype: the type of the rows of the convolution.
    """

    def __init__(
        self,
        shape: LayerShape,
        num_states: int,
        num_stashes: int,
        stash_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        window = shape.taps - 1, shape.channels
        self.shape = shape
        self.states = torch.zeros(num_states, *shape.state, device=device)
        self.windows = torch.zeros(num_states, *window, dtype=dtype, device=device)
        rows = num_stashes, stash_rows
        self.rows = torch.zeros(*rows, shape.channels, dtype=dtype, device=device)
        self.gates = torch.zeros(*rows, shape.num_gates, device=device)
        self._filter: Filter | None = None

    def set_filter(self, weight: Tensor, bias: Tensor | None) -> None:
        """Copy the weights of the convolution, at the first call.

        Args:
            weight: [channels, taps].
            bias: [channels].
        """
        if self._filter is None:
            self._filter = Filter.of_layer(weight, bias)

    @property
    def flat_rows(self) -> Tensor:
        """The stored rows of all sequences, [rows, channels]."""
        return self.rows.view(-1, self.shape.channels)

    @property
    def flat_gates(self) -> Tensor:
        """The gates of these rows, [rows, gates]."""
        return self.gates.view(-1, self.shape.num_gates)

    def convolve(self, source: Tensor, taps: Taps) -> Tensor:
        """Return the convolutions of rows as `steps.convolve` does, after `set_filter`."""
        assert self._filter is not None, "the layer has run, or it would have no rows"
        return convolve(source, taps, self._filter, is_activated=self.shape.is_activated)


class StatePool:
    """The memory of all recurrent layers, and the owners of its parts.

    The constructor writes all of the memory once and raises `ModelError` if there is too little.
    """

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        *,
        num_states: int,
        num_stashes: int,
        stash_rows: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate the memory.

        Args:
            shapes: of the recurrent layers, by their numbers.
            num_states: the states of running sequences, and of prefixes that are stored.
            num_stashes: the most running sequences.
            stash_rows: the most rows of a tree.
            dtype: the type that the model computes in.
        """
        try:
            self.layers = {
                number: LayerMemory(shape, num_states, num_stashes, stash_rows, dtype, device)
                for number, shape in shapes.items()
            }
        except RuntimeError as error:  # what the allocators of CPU and CUDA raise
            raise ModelError(
                f"{device} has no room for {num_states} states of recurrent layers ({error}). "
                "Lower memory.device or max_sequences."
            ) from error
        self.dtype, self.device = dtype, device
        self.num_states = num_states
        self.num_stashes = num_stashes
        self.stash_rows = stash_rows
        self._free_states = list(range(num_states - 1, -1, -1))
        self._free_stashes = list(range(num_stashes - 1, -1, -1))

    def upload(self, numbers: Sequence[Any]) -> list[Tensor]:
        """Return arrays of numbers as tensors of int64 on the device."""
        device = next(iter(self.layers.values())).states.device
        return upload_all([torch.from_numpy(np.array(own, np.int64)) for own in numbers], device)

    @property
    def num_free(self) -> int:
        """The number of further sequences that can have a state."""
        return min(len(self._free_states), len(self._free_stashes))

    @property
    def num_running(self) -> int:
        """The number of sequences that have a state."""
        return self.num_stashes - len(self._free_stashes)

    @property
    def state_bytes(self) -> int:
        """The bytes of one state in all layers."""
        return sum(memory.shape.state_bytes(self.dtype) for memory in self.layers.values())

    @property
    def num_unreserved(self) -> int:
        """The number of free states that no further sequence may need."""
        return len(self._free_states) - len(self._free_stashes)

    def take_slot(self) -> int:
        """Return the number of a free state, which belongs to no sequence."""
        return self._free_states.pop()

    def give_back(self, slot: int) -> None:
        """Free a state that belongs to no sequence."""
        self._free_states.append(slot)

    def copy_slot(self, source: int, target: int) -> None:
        """Copy a state in all layers."""
        for memory in self.layers.values():
            memory.states[target] = memory.states[source]
            memory.windows[target] = memory.windows[source]

    def copy_out(self, slot: int) -> Tensor:
        """Return a copy of a state in all layers on the host, uint8."""
        parts = [part[slot].flatten().view(torch.uint8) for part in self._parts()]
        return torch.cat(parts).cpu()

    def copy_in(self, slot: int, payload: Tensor) -> None:
        """Fill a state with what `copy_out` returned."""
        done = 0
        for part in self._parts():
            own = part[slot]
            # A copy, because a slice may begin at any byte.
            values = payload[done : done + own.nbytes].clone().view(own.dtype)
            own.copy_(values.view(own.shape))
            done += own.nbytes

    def _parts(self) -> Iterator[Tensor]:
        """Yield the memory of the states of all layers, and of their windows."""
        for memory in self.layers.values():
            yield from (memory.states, memory.windows)

    def open(self) -> "SequenceState | None":
        """Return the state of a new sequence without tokens; None if there is no room for one."""
        if not self.num_free:
            return None
        state = SequenceState(self, self._free_states.pop(), self._free_stashes.pop())
        for memory in self.layers.values():
            memory.states[state.slot].zero_()
            memory.windows[state.slot].zero_()
        return state

    def fork(self, state: "SequenceState") -> "SequenceState | None":
        """Return the state of another sequence with the same tokens; None without room."""
        forked = self.open()
        if forked is None:
            return None
        state.replay()
        self.copy_slot(state.slot, forked.slot)
        forked.begin_at(state.length)
        return forked

    def replay(self, states: "Sequence[SequenceState]") -> None:
        """Bring the states of some sequences up to their accepted rows, in all layers."""
        made: dict[tuple[int, tuple[SequenceState, ...]], Replay] = {}
        for layer, memory in self.layers.items():
            behind = tuple(state for state in states if state.is_behind(layer))
            if behind:
                key = memory.shape.taps, behind
                if key not in made:
                    made[key] = Replay(self, behind, memory.shape.taps)
                made[key].run(layer)

    def close(self, state: "SequenceState") -> None:
        """Free the memory of a sequence."""
        self.detach(state)
        self.give_back(state.slot)

    def detach(self, state: "SequenceState") -> None:
        """Free the memory of a sequence, but not its states, which belong to it no longer."""
        self._free_stashes.append(state.stash)
        for slot in state.captures.values():
            self.give_back(slot)


class SequenceState:
    """The states of one sequence in all recurrent layers, and which tokens they include."""

    def __init__(self, pool: StatePool, slot: int, stash: int) -> None:
        self.pool = pool
        self.slot = slot
        self.stash = stash
        self.length = 0  # the tokens of the sequence that are accepted
        # States to be copied when they include so many tokens, and where to.
        self.captures: dict[int, int] = {}
        # The last of them, which are rows of the stash: states may be behind by these.
        self.path: tuple[int, ...] = ()
        self._lengths = dict.fromkeys(pool.layers, 0)  # the tokens in the state of each layer

    def is_stashed(self, rows: int) -> bool:
        """Return whether the rows of a pass change the state only after they are accepted.

        Long prompts do not, nor those in which states are captured.
        """
        return rows <= self.pool.stash_rows and not self.captures

    def is_at(self, length: int) -> bool:
        """Return whether all states include just the first `length` tokens, or can do so.

        They do not after a pass that has changed some of them and failed.
        """
        before = self.length - len(self.path)
        return length == self.length and all(n in (length, before) for n in self._lengths.values())

    def is_caught_up(self, length: int) -> bool:
        """Return whether all states include just the first `length` tokens."""
        return length == self.length and set(self._lengths.values()) == {length}

    def begin_at(self, length: int) -> None:
        """Note that the states of all layers include the first `length` tokens."""
        self.length, self.path = length, ()
        self._lengths = dict.fromkeys(self._lengths, length)

    def extend(self, rows: Sequence[int]) -> None:
        """Add accepted rows of the last pass, in order, to the sequence.

        Their numbers count from the first row of the sequence in the pass.
        """
        before, after = self.length, self.length + len(rows)
        self.path = tuple(rows) if set(self._lengths.values()) == {before} else ()
        self.length = after

    def is_behind(self, layer: int) -> bool:
        """Return whether accepted rows are to be repeated in a layer."""
        if self._lengths[layer] == self.length:
            return False
        assert self._lengths[layer] == self.length - len(self.path), "its rows were not kept"
        return True

    def replay(self) -> None:
        """Bring the states of all layers up to the accepted rows."""
        self.pool.replay([self])

    def begin_change(self, layer: int) -> None:
        """Note that the state of a layer is of no use until `end_change`."""
        self._lengths[layer] = _DAMAGED

    def end_change(self, layer: int, length: int) -> None:
        """Note that the state of a layer includes the first `length` tokens."""
        self._lengths[layer] = length


class Replay:
    """The repetition of accepted rows of some sequences in layers whose states are behind."""

    def __init__(self, pool: StatePool, states: Sequence[SequenceState], taps: int) -> None:
        """Find the places of the rows, which are the same in all these layers.

        Args:
            taps: of the convolutions of the layers.
        """
        self._pool, self._states = pool, states
        window = taps - 1
        first_row, stored = window * len(states), list[int]()
        places, ends, walks = [], [], []
        for number, state in enumerate(states):
            rows = range(len(stored), len(stored) + len(state.path))
            count = len(rows)
            chain = np.arange(window + count)
            chain = locate(chain, window, 0, number * window, 0, first_row + rows.start)
            places.append(chain[chain_places(count, taps)])
            ends.append(chain[count:])
            walks.append(chain_walk(rows, state.slot))
            stored += [state.stash * pool.stash_rows + row for row in state.path]
        self._taps, self._walk = Taps(np.concatenate(places)), Walk.join(walks)
        numbers = [[state.slot for state in states], stored, np.stack(ends)]
        self._slots, self._stored, self._ends = pool.upload(numbers)

    def run(self, layer: int) -> None:
        """Bring the states of a layer up to the accepted rows."""
        memory = self._pool.layers[layer]
        windows, rows = memory.windows[self._slots], memory.flat_rows[self._stored]
        source = torch.cat([windows.flatten(0, 1), rows])
        for state in self._states:
            state.begin_change(layer)
        if memory.shape.has_state:
            convolved = memory.convolve(source, self._taps)
            gates = memory.flat_gates[self._stored]
            inputs = make_inputs(memory.shape, *memory.shape.split(convolved), gates)
            walk(memory.states, inputs, self._walk)
        memory.windows[self._slots] = source[self._ends]
        for state in self._states:
            state.end_change(layer, state.length)
