"""The memory of a draft tree in recurrent layers: what each node does to the state before it.

A draft grows its tree level by level through all layers, so it would have to keep a state for each
node and layer, which is 151 MB a node for a model of 27 B. It keeps updates instead: the key, what
is added for it, and the decay. `engine.recurrent.branch` reads the states of a sequence and the
updates of a node's ancestors in place of the node's own state.

Nodes are known by the slots of the KV cache that hold their keys and values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.recurrent.shape import LayerShape
from engine.transfer import upload


@dataclass(frozen=True)
class LayerNodes:
    """What is kept of the nodes in one layer. Vectors are padded as in `steps.Inputs`.

    Args:
        rows: the inputs of the convolution, [nodes, channels].
        keys: [nodes, key heads, depth].
        added: what is added to the state for the key, [nodes, heads, width].
        logs: the sum of the logarithms of the decays on the path from the root down to the node,
            [nodes, heads, 1 or depth] float32.
    """

    rows: Tensor
    keys: Tensor
    added: Tensor
    logs: Tensor


class NodeMemory:
    """The nodes of all draft trees. The constructor raises `ModelError` without enough memory."""

    def __init__(
        self,
        shapes: Mapping[int, LayerShape],
        num_nodes: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Allocate the memory.

        Args:
            shapes: of the recurrent layers, by their numbers.
            num_nodes: the nodes that it has room for, of all sequences together.
            dtype: the type that the model computes in.
        """
        self.num_nodes = num_nodes
        widths = [shape.heads * shape.padded_decays for shape in shapes.values()]
        try:
            self._logs = torch.zeros(num_nodes, sum(widths), device=device)
            parts = torch.split(self._logs, widths, dim=1)
            self.layers = {
                number: _layer(shape, num_nodes, logs, dtype)
                for (number, shape), logs in zip(shapes.items(), parts, strict=True)
            }
        except RuntimeError as error:  # what the allocators of CPU and CUDA raise
            raise ModelError(
                f"{device} has no room for {num_nodes} drafted rows of recurrent layers ({error}). "
                "Lower memory.device or max_sequences."
            ) from error
        self._free = list(range(num_nodes - 1, -1, -1))
        self._numbers: dict[int, int] = {}  # by slot of the KV cache

    @property
    def num_free(self) -> int:
        """The number of further nodes that there is room for."""
        return len(self._free)

    def take(self, slot: int) -> None:
        """Reserve memory, of which there is some, for the node whose KV is in a slot."""
        self._numbers[slot] = self._free.pop()

    def give_back(self, slots: Sequence[int]) -> None:
        """Free the memory of nodes."""
        self._free += [self._numbers.pop(slot) for slot in slots]

    def numbers(self, slots: Sequence[int]) -> Tensor:
        """Return the places of nodes in the memory of each layer, int64 on the host."""
        return torch.tensor([self._numbers[slot] for slot in slots], dtype=torch.int64)

    def move_root(self, slots: Sequence[int], last: int) -> None:
        """Note that the states of a sequence include the tokens down to the node `last`.

        Args:
            slots: of the nodes of the sequence, among them those below `last`.
        """
        numbers = upload(self.numbers(slots), self._logs.device)
        base = self._logs[self._numbers[last]]
        self._logs[numbers] = self._logs[numbers] - base


def _layer(shape: LayerShape, num_nodes: int, logs: Tensor, dtype: torch.dtype) -> LayerNodes:
    sizes = [(shape.channels,), shape.padded_keys, shape.padded_values]
    rows, keys, added = (
        torch.zeros(num_nodes, *size, dtype=dtype, device=logs.device) for size in sizes
    )
    return LayerNodes(rows, keys, added, logs.view(num_nodes, shape.heads, shape.padded_decays))
