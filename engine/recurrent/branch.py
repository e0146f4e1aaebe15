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

All this equals the recurrence within rounding, and depends on the number of rows in the last bits:
it serves drafts only. It reads the states of the target, which have to include all tokens before
the root, and never changes them.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from engine.recurrent.nodes import LayerNodes, NodeMemory
from engine.recurrent.shape import LayerShape
from engine.recurrent.states import LayerMemory, SequenceState
from engine.recurrent.steps import make_inputs
from engine.transfer import upload_all

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
                on the host; None: the root alone.
        """
        self.state = state
        self.nodes = nodes
        self._count = len(earlier)
        seen = np.ones((1, 1), np.bool_) if mask is None else mask.numpy()
        self._paths = [np.flatnonzero(row) for row in seen]
        # The last of the earlier ancestors of each row has the product of their decays.
        last = [max((c for c in path if c < self._count), default=-1) for path in self._paths]
        within = seen[:, self._count :]
        self.is_level = bool(within.sum() == len(own))  # no row is the parent of another one
        device = state.pool.device
        moved = upload_all(
            [
                nodes.numbers([*earlier, *own]),
                torch.tensor(last, dtype=torch.int64),
                torch.from_numpy(seen.copy()),
                torch.from_numpy(within.astype(np.float32)),
            ],
            device,
        )
        self._numbers, self.last, self.seen, self.within = moved

    @property
    def earlier(self) -> Tensor:
        """The numbers of the earlier nodes in the memory of each layer."""
        return self._numbers[: self._count]

    @property
    def own(self) -> Tensor:
        """The numbers of the rows of this step in the memory of each layer."""
        return self._numbers[self._count :]

    @cached_property
    def _places(self) -> dict[int, tuple[Tensor, Any]]:
        return {}

    def places(self, taps: int) -> tuple[Tensor, Any]:
        """Return the earlier nodes that a convolution sees, and the places of its taps.

        These are numbers in the window of the convolution, those nodes, and the rows of this step,
        [rows, taps] int64.
        """
        if taps not in self._places:
            window = taps - 1
            paths = [[*range(-window, 0), *path][-taps:] for path in self._paths]
            near = sorted({c for path in paths for c in path if 0 <= c < self._count})
            place = {c: window + index for index, c in enumerate(near)}
            place |= {c: window + c for c in range(-window, 0)}
            place |= {
                self._count + row: window + len(near) + row for row in range(len(self._paths))
            }
            found = np.array([[place[c] for c in path] for path in paths], np.int64)
            (index,) = upload_all([torch.tensor(near, dtype=torch.int64)], self._numbers.device)
            self._places[taps] = self._numbers[index], found
        return self._places[taps]


class NodeVisit:
    """Rows of a draft tree in one layer."""

    def __init__(self, rows: NodeRows, layer: int) -> None:
        self.memory: LayerMemory = rows.state.pool.layers[layer]
        self._rows = rows
        self._nodes: LayerNodes = rows.nodes.layers[layer]
        self._slot = rows.state.slot

    def convolve(self, rows: Tensor) -> Tensor:
        """Return the convolutions [rows, C] of rows [rows, C], which see their ancestors."""
        near, places = self._rows.places(self.memory.shape.taps)
        window = self.memory.windows[self._slot]
        source = torch.cat([window, self._nodes.rows[near], rows])
        self._nodes.rows[self._rows.own] = rows
        return self.memory.convolve(source, places)

    def scan(self, query: Tensor, key: Tensor, value: Tensor, gates: Tensor) -> Tensor:
        """Return the output [rows, H, width] of the rows' recurrence, float32.

        Args:
            query, key, value, gates: those of `steps.make_inputs`.
        """
        tree, nodes, shape = self._rows, self._nodes, self.memory.shape
        inputs = make_inputs(shape, query, key, value, gates)
        logs = self._sum_logs(inputs.decay)
        keys = torch.cat([nodes.keys[tree.earlier].float(), inputs.key])
        decays = torch.cat([nodes.logs[tree.earlier], logs])
        asked = torch.cat([inputs.key, inputs.query]) if shape.is_corrected else inputs.query
        count, before = len(logs), len(keys) - len(logs)
        both = logs.repeat(len(asked) // count, 1, 1)
        seen = tree.seen.repeat(len(asked) // count, 1)
        known = read_state(self.memory.states[self._slot], asked, both)
        weights = weigh(shape, asked, keys, both, decays, seen)
        added = nodes.added[tree.earlier].float().transpose(0, 1)  # [H, earlier, width]
        known += weights[:, :, :before] @ added
        own = inputs.value.transpose(0, 1)
        if inputs.rate is not None:
            rate = inputs.rate.T[:, :, None]
            own = (own - known[:, :count]) * rate
            if not tree.is_level:
                matrix = rate * weights[:, :count, before:].tril(-1)
                own = torch.linalg.solve_triangular(matrix, own, upper=False, unitriangular=True)
        out = known[:, -count:] + weights[:, -count:, before:] @ own
        nodes.keys[tree.own] = inputs.key.to(nodes.keys.dtype)
        nodes.added[tree.own] = own.transpose(0, 1).to(nodes.added.dtype)
        nodes.logs[tree.own] = logs
        return out.transpose(0, 1)[..., : shape.width]

    def _sum_logs(self, decay: Tensor) -> Tensor:
        """Return the sums of the logarithms of decays from the root down, [rows, H, 1 or depth]."""
        tree = self._rows
        logs = decay.clamp(min=_LEAST_DECAY).log()
        summed = (tree.within @ logs.flatten(1)).view(logs.shape)
        if not len(tree.earlier):
            return summed
        before = self._nodes.logs[tree.earlier[tree.last.clamp(min=0)]]
        return summed + torch.where((tree.last >= 0)[:, None, None], before, 0.0)


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
    found = (
        asked.transpose(0, 1)[:, None] @ grouped
    )  # [key heads, heads of each * blocks, rows, 16]
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
