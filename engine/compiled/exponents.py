"""Compiled encoding and decoding of bfloat16 weights whose exponents take 4 bits.

`engine.weights.coding.exponents` defines the code, and has operations of torch with the same bits.
"""

from typing import Any

import numpy as np

from engine.compiled.compiler import kernel
from engine.compiled.filling import in_parts

_NONE = 16  # what stands for an exponent that is not in the table
_TABLES = 4  # of counts, since adding to one number twice in a row has to wait
_u1, _u2, _u4, _u8 = np.uint8, np.uint16, np.uint32, np.uint64


def decode(exponents: Any, fractions: Any, table: Any, out: Any) -> None:
    """Fill weights, of which escapes get any value.

    Args:
        exponents: the numbers of two exponents in each byte, uint8 [pairs].
        fractions: sign and fraction of two weights each, uint16 [pairs].
        table: the exponents, uint8 [16].
        out: two weights of 16 bits each, uint32 [pairs].
    """
    assert len(exponents) == len(fractions) == len(out), (len(exponents), len(fractions), len(out))
    both = np.arange(256)
    pairs = table[both >> 4].astype(np.uint32) << 7 | table[both & 15].astype(np.uint32) << 23

    def work(start: int, stop: int) -> None:
        own = slice(start, stop)
        _decode(exponents[own], fractions[own], pairs, out[own])

    in_parts(len(out), 2, work, is_weight=True)


def count(weights: Any) -> Any:
    """Return how many weights have each exponent, int64 [256].

    Args:
        weights: uint16 [weights].
    """
    found: list[Any] = []

    def work(start: int, stop: int) -> None:
        tables = np.zeros((_TABLES, 256), np.int64)
        _count(weights[start:stop], tables)
        found.append(tables)

    in_parts(len(weights), 1, work, is_weight=True)
    return np.sum(found, axis=(0, 1))


def encode(weights: Any, table: Any, exponents: Any, fractions: Any) -> Any:
    """Write exponents and fractions; return whether each of the weights is an escape.

    The arguments are those of `decode`; `weights` are uint16 [2 * pairs].
    """
    assert len(weights) == 2 * len(exponents) == 2 * len(fractions), len(weights)
    numbers = np.full(256, _NONE, np.uint8)
    numbers[table[::-1]] = np.arange(len(table), dtype=np.uint8)[::-1]
    is_escape = np.empty(len(weights), np.bool_)

    def work(start: int, stop: int) -> None:
        own, both = slice(start, stop), slice(2 * start, 2 * stop)
        _encode(weights[both], numbers, exponents[own], fractions[own], is_escape[both])

    in_parts(len(exponents), 2, work, is_weight=True)
    return is_escape


@kernel("void(u1[::1], u2[::1], u4[::1], u4[::1])", "decode_exponents")
def _decode(exponents: Any, fractions: Any, pairs: Any, out: Any) -> None:
    for at in range(_u8(len(out))):
        both = _u4(fractions[at])
        first = _u4(_u4(both & _u4(0x7F)) | _u4(_u4(both & _u4(0x80)) << _u4(8)))
        second = _u4(
            _u4(_u4(both & _u4(0x7F00)) << _u4(8)) | _u4(_u4(both & _u4(0x8000)) << _u4(16))
        )
        out[at] = _u4(_u4(pairs[exponents[at]] | first) | second)


@kernel("void(u2[::1], i8[:, ::1])", "count_exponents")
def _count(weights: Any, tables: Any) -> None:
    for at in range(_u8(len(weights))):
        exponent = _u8(_u2(weights[at] >> _u2(7)) & _u2(255))
        tables[at & _u8(_TABLES - 1), exponent] += 1


@kernel("void(u2[::1], u1[::1], u1[::1], u2[::1], b1[::1])", "encode_exponents")
def _encode(weights: Any, numbers: Any, exponents: Any, fractions: Any, is_escape: Any) -> None:
    for pair in range(_u8(len(exponents))):
        first = _u8(_u8(2) * pair)
        exponent, fraction = _u1(0), _u2(0)
        for other in range(_u8(2)):
            weight = weights[first + other]
            number = numbers[_u8(_u2(weight >> _u2(7)) & _u2(255))]
            is_escape[first + other] = number == _NONE
            exponent |= _u1(_u1(number & _u1(15)) << _u1(_u8(4) - _u8(4) * other))
            own = _u2(_u2(_u2(weight >> _u2(8)) & _u2(0x80)) | _u2(weight & _u2(0x7F)))
            fraction |= _u2(own << _u2(_u8(8) * other))
        exponents[pair], fractions[pair] = exponent, fraction
