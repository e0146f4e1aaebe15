"""The sizes of a recurrent layer and its two kinds of recurrence."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from engine.compiled.vectors import LANES

_SINGLE = torch.float32.itemsize


@dataclass(frozen=True)
class LayerShape:
    """A short convolution over the last rows and, in most layers, a state that rows change.

    Each row first goes through the convolution. The result consists of queries, keys and values,
    which change the state S [depth, width] of each head and read it:

        S = decay * S + key * added        output = query * S
        delta rule: added = (value - key * decay * S) * rate, keys and queries may be normalized
        Mamba 2: added = value * rate

    Args:
        channels: the elements of a row of the convolution.
        taps: the rows that a convolution sees, the last one included.
        is_activated: whether silu follows the convolution.
        heads: the heads of the state; 0: the layer has only the convolution.
        key_heads: the heads of keys and queries, each of which serves several heads.
        depth, width: the elements of a key and of a value.
        decays: the decays of a head: 1, or one for each element of a key.
        is_corrected: whether it is the delta rule.
        is_normalized: whether keys and queries are divided by their norm.
    """

    channels: int
    taps: int
    is_activated: bool
    heads: int = 0
    key_heads: int = 0
    depth: int = 0
    width: int = 0
    decays: int = 1
    is_corrected: bool = False
    is_normalized: bool = False

    @property
    def has_state(self) -> bool:
        """Whether the layer has a state beside the window of its convolution."""
        return self.heads > 0

    @property
    def state(self) -> tuple[int, int, int, int]:
        """The shape of a state in memory: heads, blocks of 16 columns, rows, 16 columns."""
        blocks, depth = round_to_lanes(self.width) // LANES, round_to_lanes(self.depth)
        return self.heads, blocks, depth, LANES

    @property
    def num_gates(self) -> int:
        """The number of decays and rates of a row."""
        return self.heads * (self.decays + 1) if self.has_state else 0

    @property
    def padded_keys(self) -> tuple[int, int]:
        """The shape of a row's keys, padded to whole vectors."""
        return self.key_heads, round_to_lanes(self.depth)

    @property
    def padded_values(self) -> tuple[int, int]:
        """The shape of a row's values, padded to whole vectors."""
        return self.heads, round_to_lanes(self.width)

    @property
    def padded_decays(self) -> int:
        """The decays of a head, padded to whole vectors if there are several."""
        return round_to_lanes(self.decays) if self.decays > 1 else 1

    @property
    def node_values(self) -> int:
        """The elements of the keys and values of a row."""
        return torch.Size(self.padded_keys).numel() + torch.Size(self.padded_values).numel()

    def state_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of the state and of the window, whose rows are of type `dtype`."""
        own = torch.Size(self.state).numel() * _SINGLE if self.has_state else 0
        return own + (self.taps - 1) * self.channels * dtype.itemsize

    def stash_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of what is kept of a row until it is known whether it is accepted."""
        return self.channels * dtype.itemsize + self.num_gates * _SINGLE

    def node_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes that are kept of a drafted row."""
        decays = self.heads * self.padded_decays * _SINGLE
        return (self.channels + self.node_values) * dtype.itemsize + decays

    def split(self, convolved: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys [rows, key heads, depth] and values [rows, heads, width] of rows.

        Libraries store the three side by side, in this order; for Mamba 2, in the reverse order.
        """
        keys, values = self.key_heads * self.depth, self.heads * self.width
        sizes = [keys, keys, values] if self.is_corrected else [values, keys, keys]
        parts = torch.split(convolved, sizes, dim=-1)
        query, key, value = parts if self.is_corrected else parts[::-1]
        keyed = len(convolved), self.key_heads, self.depth
        return query.view(keyed), key.view(keyed), value.view(-1, self.heads, self.width)


def round_to_lanes(size: int) -> int:
    """Return the next multiple of the values of a vector."""
    return -(-size // LANES) * LANES


def pad_lanes(x: Tensor) -> Tensor:
    """Return `x`, its last dimension padded with zeros to whole vectors."""
    missing = -x.shape[-1] % LANES
    return F.pad(x, (0, missing)) if missing else x
