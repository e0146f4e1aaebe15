"""Weights whose exponents take 4 bits: a table names the 16 most frequent ones.

Sign and fraction of bfloat16 are 8 bits, so a weight takes 12. Weights with another exponent are
escapes: 0.02 % of trained weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.compiled import exponents as compiled
from engine.compiled.filling import can_fill
from engine.triton_kernels import weight_decoder
from engine.weights.coding.escapes import (
    ESCAPE_BYTES,
    MOST_WEIGHTS,
    PLACES,
    VALUES,
    escapes_between,
    list_escapes,
    put_escapes,
)

EXPONENTS = ".exponents"  # field suffix: uint8 [weights / 2], the first of two in the upper half
FRACTIONS = ".fractions"  # field suffix: uint8 [weights], the sign in the highest bit
TABLE = ".exponent_table"  # field suffix: uint8 [16], ascending
FIELDS = (EXPONENTS, FRACTIONS, TABLE)
_SIZE = 16
_PIECE = 1 << 20  # weights whose exponents are counted at a time


def encode(weight: Tensor, most: int | None = None) -> dict[str, Tensor] | None:
    """Return the coded fields of a bfloat16 weight of any shape, on the CPU.

    Return None if it has an odd number of values, or too many, or if the fields would have more
    than `most` bytes.
    """
    if weight.numel() % 2 or not 0 < weight.numel() <= MOST_WEIGHTS:
        return None
    bits = weight.contiguous().view(torch.int16).view(-1)
    is_compiled = can_fill(weight)
    counts = _count_compiled(bits) if is_compiled else _count_exponents(bits)
    table = _most_frequent(counts)
    escapes = len(bits) - int(counts[table.long()].sum())
    nbytes = len(bits) * 3 // 2 + _SIZE + ESCAPE_BYTES * escapes
    if most is not None and nbytes > most:
        return None
    return _encode_compiled(bits, table, escapes) if is_compiled else _encode(bits, table)


def part(fields: Mapping[str, Tensor], first: int, last: int) -> dict[str, Tensor]:
    """Return the fields of the weights from `first` to before `last`, which are even."""
    return {
        EXPONENTS: fields[EXPONENTS][first // 2 : last // 2],
        FRACTIONS: fields[FRACTIONS][first:last],
        TABLE: fields[TABLE],
    } | escapes_between(fields, first, last)


def decode(fields: Mapping[str, Tensor], out: Tensor) -> None:
    """Fill a contiguous bfloat16 weight with the weights of `encode`'s fields, on its device."""
    exponents, fractions, table = (fields[name] for name in (EXPONENTS, FRACTIONS, TABLE))
    if can_fill(out):
        compiled.decode(
            exponents.numpy(),
            fractions.view(torch.uint16).numpy(),
            table.numpy(),
            out.view(-1).view(torch.int16).view(torch.uint32).numpy(),
        )
    elif weight_decoder.is_usable(out.device):
        weight_decoder.decode_exponents(exponents, fractions, table, out)
    else:
        numbers = torch.stack([exponents >> 4, exponents & 15], -1).view(-1)
        own, rest = table[numbers.long()].int(), fractions.int()
        bits = (rest & 128) << 8 | own << 7 | rest & 127
        out.view(torch.int16).view(-1).copy_(bits.short())
    put_escapes(fields, out)


def _encode(bits: Tensor, table: Tensor) -> dict[str, Tensor]:
    own = (bits.int() >> 7) & 255
    matches = own.unsqueeze(-1) == table
    number = matches.byte().argmax(-1).byte()
    exponents = number[::2] << 4 | number[1::2]
    fractions = ((bits.int() >> 8) & 128 | bits.int() & 127).byte()
    fields = {EXPONENTS: exponents, FRACTIONS: fractions, TABLE: table}
    return fields | list_escapes(bits, ~matches.any(-1))


def _encode_compiled(bits: Tensor, table: Tensor, escapes: int) -> dict[str, Tensor]:
    exponents = torch.empty(len(bits) // 2, dtype=torch.uint8)
    fractions = torch.empty(len(bits), dtype=torch.uint8)
    places, values = compiled.encode(
        bits.view(torch.uint16).numpy(),
        table.numpy(),
        exponents.numpy(),
        fractions.numpy(),
        escapes,
    )
    return {
        EXPONENTS: exponents,
        FRACTIONS: fractions,
        TABLE: table,
        PLACES: torch.from_numpy(places).view(torch.int32),
        VALUES: torch.from_numpy(values).view(torch.int16),
    }


def _count_compiled(bits: Tensor) -> Tensor:
    return torch.from_numpy(compiled.count(bits.view(torch.uint16).numpy()))


def _count_exponents(bits: Tensor) -> Tensor:
    """Return how many weights have each exponent, int64 [256]."""
    counts = torch.zeros(256, dtype=torch.int64)
    for piece in torch.split(bits, _PIECE):
        counts += torch.bincount((piece >> 7).int() & 255, minlength=256)
    return counts


def _most_frequent(counts: Tensor) -> Tensor:
    """Return the 16 most frequent exponents, ascending; of equally frequent ones the smaller."""
    return counts.sort(descending=True, stable=True).indices[:_SIZE].sort().values.byte()
