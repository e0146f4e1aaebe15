r"""Rows of a draft tree in recurrent layers, by the updates of their ancestors.

A state S [depth, width] of a head changes with each row by one key k and one vector u:

    S_i = a_i S_p + k_i u_i^T          (p is the parent of row i, and a_i its decay)

So with D_i, the product of the decays on the path from the root down to i, it is a sum over the
ancestors j of i, itself included, and the state R before the root:

    S_i = D_i R + \sum_j (D_i / D_j) k_j u_j^T

The output is read from it as by attention that is masked to the ancestors, without a softmax:

    o_i = S_i^T q_i = D_i R^T q_i + \sum_j (D_i / D_j) (q_i . k_j) u_j

In Mamba 2 u_i is the value times the rate b_i. The delta rule corrects what the state has for the
key, so it reads the same sum first, over the ancestors without i (their decays include a_i):

    u_i = b_i (v_i - D_i R^T k_i - \sum_{j < i} (D_i / D_j) (k_i . k_j) u_j)

Where ancestors run in the same step, this is a triangular system of equations. In Kimi delta
attention a decay is a vector [depth]: it scales the elements of q_i and k_i before their products.

The states after an accepted path follow from the same sum (`advance_states`), without weights.

All this equals the recurrence within rounding, and depends on the number of rows in the last bits:
it serves drafts only. The states have to include all tokens before the root. They are those of the
target, which a draft only reads, or a draft model's own.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.recurrent.nodes import LayerNodes, NodeMemory
from engine.recurrent.order import Taps
from engine.recurrent.shape import LayerShape
from engine.recurrent.states import SequenceState
from engine.recurrent.steps import Inputs, make_inputs
from engine.transfer import upload, upload_all

_LEAST_DECAY = 1e-30  # whose logarithm is finite; what it leaves of a state does not count


class NodeRows:
    """The rows of one sequence in a draft step: nodes of its tree."""

    def __init__(
        self,
        state: SequenceState,
        nodes: NodeMemory,
        earlier: Sequence[int],
        own: Sequence[int],
        mask: Tensor | None,
    ) -> None:
        """Describe the rows of a step.

        Args:
            state: the states of the sequence, which include all tokens before the root.
            nodes: the memory of the tree.
            earlier: the slots of nodes that have run, ancestors before their descendants.
            own: the slots of the rows of this step, as well.
            mask: which of both each row descends from, itself included, [own, earlier + own] bool
                on the host; None: each row follows the one before it, and none has run earlier.
        """
        self.pool = state.pool
        self._slot = state.slot
        self._nodes = nodes
        self._count = len(earlier)
        seen = np.tri(len(own), dtype=np.bool_) if mask is None else mask.numpy()
        self._paths = [np.flatnonzero(row) for row in seen]
        # The last of the earlier ancestors of each row has the product of their decays.
        last = [max((c for c in path if c < self._count), default=-1) for path in self._paths]
        within = seen[:, self._count :]
        self._is_level = bool(within.sum() == len(own))  # no row is the parent of another one
        moved = upload_all(
            [
                nodes.numbers([*earlier, *own]),
                torch.tensor(last, dtype=torch.int64),
                torch.from_numpy(seen.copy()),
                torch.from_numpy(within.astype(np.float32)),
            ],
            state.pool.device,
        )
        self._numbers, self._last, self._seen, self._within = moved
        self._found: dict[int, tuple[Tensor, Taps]] = {}

    @property
    def earlier(self) -> Tensor:
        """The numbers of the earlier nodes in the memory of each layer."""
        return self._numbers[: self._count]

    @property
    def own(self) -> Tensor:
        """The numbers of the rows of this step in the memory of each layer."""
        return self._numbers[self._count :]

    def convolve(self, layer: int, rows: Tensor, taps: int) -> Tensor:
        """Return the convolutions [rows, C] of the rows of this step [rows, C] in a layer."""
        memory, nodes = self.pool.layers[layer], self._nodes.layers[layer]
        near, places = self._places(taps)
        source = torch.cat([memory.windows[self._slot], nodes.rows[near], rows])
        nodes.rows[self.own] = rows
        return memory.convolve(source, places)

    def scan(self, layer: int, inputs: Inputs) -> Tensor:
        """Return the output [rows, H, width] of the rows of this step in a layer, float32."""
        memory, nodes = self.pool.layers[layer], self._nodes.layers[layer]
        shape, count = memory.shape, len(self.own)
        logs = self._sum_logs(nodes, inputs.decay)
        keys = torch.cat([nodes.keys[self.earlier].float(), inputs.key])
        decays = torch.cat([nodes.logs[self.earlier], logs])
        asked, both, seen = inputs.query, logs, self._seen
        if shape.is_corrected:
            asked, both = torch.cat([inputs.key, asked]), torch.cat([logs, logs])
            seen = torch.cat([seen, seen])
        known = read_state(memory.states[self._slot], asked, both)
        weights = weigh(shape, asked, keys, both, decays, seen)
        of_earlier, of_own = weights[:, :, : self._count], weights[:, :, self._count :]
        known += of_earlier @ nodes.added[self.earlier].float().transpose(0, 1)
        added = inputs.value.transpose(0, 1)  # [H, rows, width]
        if inputs.rate is not None:
            rate = inputs.rate.T[:, :, None]
            added = (added - known[:, :count]) * rate
            if not self._is_level:
                matrix = rate * of_own[:, :count].tril(-1)
                added = torch.linalg.solve_triangular(
                    matrix, added, upper=False, unitriangular=True
                )
        nodes.keys[self.own] = inputs.key.to(nodes.keys.dtype)
        nodes.added[self.own] = added.transpose(0, 1).to(nodes.added.dtype)
        nodes.logs[self.own] = logs
        return (known[:, -count:] + of_own[:, -count:] @ added).transpose(0, 1)

    def _sum_logs(self, nodes: LayerNodes, decay: Tensor) -> Tensor:
        """Return the sums of the logarithms of decays from the root down, [rows, H, 1 or depth]."""
        logs = decay.clamp(min=_LEAST_DECAY).log()
        summed = (self._within @ logs.flatten(1)).view(logs.shape)
        if not self._count:
            return summed
        before = nodes.logs[self.earlier[self._last.clamp(min=0)]]
        return summed + torch.where((self._last >= 0)[:, None, None], before, 0.0)

    def _places(self, taps: int) -> tuple[Tensor, Taps]:
        """Return the earlier nodes that a convolution sees, and the places of its taps.

        The places are numbers in the window of the convolution, those nodes, and the rows of this
        step.
        """
        if taps in self._found:
            return self._found[taps]
        window = taps - 1
        paths = [[*range(-window, 0), *path][-taps:] for path in self._paths]
        near = sorted({c for path in paths for c in path if 0 <= c < self._count})
        place = {c: window + c for c in range(-window, 0)}
        place |= {c: window + index for index, c in enumerate(near)}
        first = window + len(near)
        place |= {self._count + row: first + row for row in range(len(self._paths))}
        found = Taps(np.array([[place[c] for c in path] for path in paths], np.int64))
        (index,) = self.pool.upload([near])
        self._found[taps] = self._numbers[index], found
        return self._found[taps]


class NodeVisit:
    """The rows of a draft step in the recurrent layers, of all sequences.

    Args:
        trees: the rows of each sequence, one after another.
        taps: of the convolutions of the layers.
    """

    def __init__(self, trees: Sequence[NodeRows], taps: int) -> None:
        self._trees, self._taps = trees, taps
        self._counts = [len(tree.own) for tree in trees]

    def convolve(self, layer: int, rows: Tensor) -> Tensor:
        """Return the convolutions [rows, C] of rows [rows, C], which see their ancestors."""
        parts = zip(self._trees, torch.split(rows, self._counts), strict=True)
        return torch.cat([tree.convolve(layer, own, self._taps) for tree, own in parts])

    def scan(self, layer: int, query: Tensor, key: Tensor, value: Tensor, gates: Tensor) -> Tensor:
        """Return the output [rows, H, width] of the rows' recurrence, float32.

        Args:
            query, key, value, gates: those of `steps.make_inputs`.
        """
        shape = self._trees[0].pool.layers[layer].shape
        inputs = make_inputs(shape, query, key, value, gates)
        found, first = [], 0
        for tree, count in zip(self._trees, self._counts, strict=True):
            found.append(tree.scan(layer, inputs.rows(first, first + count)))
            first += count
        return torch.cat(found)[..., : shape.width]


def advance_states(state: SequenceState, nodes: NodeMemory, slots: Sequence[int]) -> None:
    """Let the states of a sequence include some nodes, each of which follows the one before it.

    `SequenceState.extend` has to follow. If this fails, the states are of no use.

    Args:
        slots: of the nodes. The first of them follows the tokens that the states include.
    """
    numbers = upload(nodes.numbers(slots), state.pool.device)
    for number, memory in state.pool.layers.items():
        own = nodes.layers[number]
        state.begin_change(number)
        rows = torch.cat([memory.windows[state.slot], own.rows[numbers]])
        memory.windows[state.slot] = rows[len(slots) :]
        if memory.shape.has_state:
            logs = own.logs[numbers]
            passed = (logs[-1] - logs).exp()  # [nodes, H, 1 or depth]
            group = memory.shape.heads // memory.shape.key_heads
            keys = own.keys[numbers].float().repeat_interleave(group, dim=1) * passed
            added = keys.permute(1, 2, 0) @ own.added[numbers].float().transpose(0, 1)
            before = memory.states[state.slot]
            heads, blocks, depth, lanes = before.shape
            added = added.view(heads, depth, blocks, lanes).transpose(1, 2)
            memory.states[state.slot] = before * logs[-1].exp()[:, None, :, None] + added
        state.end_change(number, state.length + len(slots))


def read_state(state: Tensor, asked: Tensor, logs: Tensor) -> Tensor:
    """Return what a decayed state has for some keys or queries, [H, rows, width].

    Args:
        state: as `LayerShape.state` says.
        asked: [rows, key heads, depth].
        logs: the logarithms of the decays since the state, [rows, H, 1 or depth].
    """
    heads, blocks, depth, lanes = state.shape
    rows, key_heads, _ = asked.shape
    if logs.shape[2] > 1:
        asked = asked.repeat_interleave(heads // key_heads, dim=1) * logs.exp()
        key_heads = heads
    grouped = state.view(key_heads, -1, depth, lanes)
    # [key heads, heads of each * blocks, rows, 16]
    found = asked.transpose(0, 1)[:, None] @ grouped
    found = found.view(heads, blocks, rows, lanes).transpose(1, 2).flatten(2)
    return found if logs.shape[2] > 1 else found * logs.exp().transpose(0, 1)


def weigh(
    shape: LayerShape, asked: Tensor, keys: Tensor, logs: Tensor, decays: Tensor, seen: Tensor
) -> Tensor:
    """Return the weight of each node's update for some keys or queries, [H, rows, nodes].

    Args:
        asked: [rows, key heads, depth].
        keys: of the nodes, [nodes, key heads, depth].
        logs, decays: the sums of logarithms of decays of the rows, and of the nodes, [..., H, 1 or
            depth].
        seen: the nodes that each row sees, [rows, nodes] bool.
    """
    group = shape.heads // shape.key_heads
    hidden = ~seen
    if logs.shape[2] == 1:
        products = asked.transpose(0, 1) @ keys.permute(1, 2, 0)
        passed = logs.permute(1, 0, 2) - decays.permute(1, 2, 0)
        passed = passed.masked_fill_(hidden, -torch.inf).exp_()
        return passed.mul_(products.repeat_interleave(group, dim=0))
    asked, keys = (part.repeat_interleave(group, dim=1) for part in (asked, keys))
    rows = []
    for one, log, outside in zip(asked, logs, hidden, strict=True):  # they are large
        passed = (log - decays).masked_fill_(outside[:, None, None], -torch.inf).exp_()
        rows.append((passed * one * keys).sum(-1).T)
    return torch.stack(rows, dim=1)
