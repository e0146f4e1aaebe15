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
    fields = None
    if substitute is not None and cells.supports(substitute):
        fields = cells.encode_within(weight, substitute, int(_WORTH * weight.nbytes))
    if fields is None:
        fields = exponents.encode(weight, weight.nbytes - 1)
    if fields is None:
        return None
    again = torch.empty_like(weight, memory_format=torch.contiguous_format)
    decode(fields, substitute, again)
    if not _same_bits(again, weight.contiguous()):
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


def _same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two contiguous weights of an even number of values have the same bits."""
    # Two values at a time: torch compares those of 16 bits at half of this speed.
    words, others = (own.view(-1).view(torch.int16).numpy().view(np.uint32) for own in (one, other))
    found: list[bool] = []

    def work(start: int, stop: int) -> None:
        found.append(np.array_equal(words[start:stop], others[start:stop]))

    in_parts(len(words), 2, work, is_weight=True)
    return all(found)
