"""Weights in the shortest lossless code, which is checked by decoding."""

import logging
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from engine.compiled.filling import in_parts
from engine.weights.coding import cells, exponents
from engine.weights.coding.cells import Substitute

log = logging.getLogger(__name__)

CODE_VERSION = 1  # raised when the same weights begin to give other bytes
SUFFIXES = (cells.STREAM, exponents.EXPONENTS)  # the first field of each code: no other has it
_WORTH = 0.75  # share of a weight's bytes that the code of exponents takes at least
_COMPARED = 1 << 21  # weights that are decoded at a time, to be compared with those that were coded
_STEP = 16  # rows that are decoded together
LEAST_WEIGHTS = 4096  # of a weight that is coded; smaller ones are not worth the fields


def encode(weight: Tensor, substitute: Substitute | None) -> dict[str, Tensor] | None:
    """Return the coded fields of a weight in CPU memory by their suffixes; None if it stays plain.

    It stays plain if it is not of bfloat16, small, or would not become smaller. The fields have
    been decoded and compared with the weight.

    Args:
        substitute: its 4-bit copy, which the decoder will have; None: there is none.
    """
    if weight.dtype != torch.bfloat16 or weight.numel() < LEAST_WEIGHTS:
        return None
    weight = weight.contiguous()
    fields = None
    if substitute is not None and cells.supports(substitute):
        fields = cells.encode_within(weight, substitute, int(_WORTH * weight.nbytes))
    if fields is None:
        fields = exponents.encode(weight, weight.nbytes - 1)
    if fields is None:
        return None
    if not _decodes_to(fields, substitute, weight):
        log.error("a coded weight decodes to other bits on this machine: it stays plain")
        return None
    return fields


def decode(fields: Mapping[str, Tensor], substitute: Substitute | None, out: Tensor) -> None:
    """Fill a contiguous bfloat16 weight with the weights of `encode`'s fields, on its device."""
    if exponents.EXPONENTS in fields:
        exponents.decode(fields, out)
    else:
        assert substitute is not None, "the weight was coded with a substitute"
        cells.decode(fields, substitute, out)


def _decodes_to(
    fields: Mapping[str, Tensor], substitute: Substitute | None, weight: Tensor
) -> bool:
    """Return whether fields decode to a contiguous weight, in every bit.

    They are decoded in parts that stay in the cache until they are compared.
    """
    items = weight if cells.STREAM in fields else weight.view(-1)  # rows, or weights
    size = items[0].numel()
    step = max(_STEP, _COMPARED // size // _STEP * _STEP)
    memory = torch.empty(min(step, len(items)) * size, dtype=weight.dtype)
    for first in range(0, len(items), step):
        wanted = items[first : first + step]
        out = memory[: wanted.numel()].view(wanted.shape)
        if substitute is not None and cells.STREAM in fields:
            rows = range(first, first + len(wanted))
            decode(*cells.part(fields, substitute, rows), out)
        else:
            decode(exponents.part(fields, first, first + len(wanted)), None, out)
        if not _same_bits(out, wanted):
            return False
    return True


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two contiguous weights of an even number of values have the same bits."""
    # Two values at a time: torch compares those of 16 bits at half of this speed.
    words, others = (own.view(-1).view(torch.int16).numpy().view(np.uint32) for own in (one, other))
    found: list[bool] = []

    def work(start: int, stop: int) -> None:
        found.append(np.array_equal(words[start:stop], others[start:stop]))

    in_parts(len(words), 2, work, is_weight=True)
    return all(found)
