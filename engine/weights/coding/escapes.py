"""Escapes: the weights that a code cannot express, in a list beside the coded ones."""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.triton_kernels import weight_decoder

PLACES = ".escape_places"  # field suffix: int32 [escapes], the numbers of these weights, ascending
VALUES = ".escape_values"  # field suffix: int16 [escapes], their bits
ESCAPE_BYTES = 6
MOST_WEIGHTS = (1 << 31) - 1  # of a coded weight, because a place is an int32
_PIECE = 1 << 20


def list_escapes(weights: Tensor, is_escape: Tensor) -> dict[str, Tensor]:
    """Return the fields of the escapes.

    Args:
        weights: the bits of all weights, int16.
        is_escape: whether each of them is an escape, of the same shape.
    """
    places = is_escape.view(-1).nonzero().view(-1)
    return {PLACES: places.to(torch.int32), VALUES: weights.view(-1)[places]}


def escapes_between(fields: Mapping[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    """Return the fields of the escapes of the weights from `first` to before `last`."""
    places = fields[PLACES]
    ends = torch.tensor([first, last], dtype=places.dtype)
    own = slice(*torch.searchsorted(places, ends).tolist())
    return {PLACES: places[own] - first, VALUES: fields[VALUES][own]}


def put_escapes(fields: Mapping[str, Tensor], out: Tensor) -> None:
    """Write the escapes among `fields` into decoded weights, which are contiguous."""
    places = fields[PLACES]
    if weight_decoder.is_usable(out.device):
        weight_decoder.put_escapes(places, fields[VALUES], out)
        return
    weights = out.view(torch.int16).view(-1)
    # In pieces, because indices of 8 bytes may take as much memory as the weights.
    pieces = (torch.split(own, _PIECE) for own in (places, fields[VALUES]))
    for own, values in zip(*pieces, strict=True):
        weights[own.long()] = values


def coded_bytes(fields: Mapping[str, Tensor]) -> int:
    """Return the bytes of coded fields."""
    return sum(tensor.nbytes for tensor in fields.values())
