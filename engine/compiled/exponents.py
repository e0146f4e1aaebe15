"""Compiled encoding and decoding of bfloat16 weights whose exponents take 4 bits.

`engine.weights.coding.exponents` defines the code, and has operations of torch with the same bits.
"""

from typing import Any

import numpy as np

from engine.compiled.compiler import kernel
from engine.compiled.exponent_vectors import RUN, encode_runs
from engine.compiled.filling import in_parts

_TABLES = 4  # of counts, since adding to one number twice in a row has to wait
_RUNS = 64  # that are encoded before their escapes are listed
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


def encode(
    weights: Any, table: Any, exponents: Any, fractions: Any, escapes: int
) -> tuple[Any, Any]:
    """Write exponents and fractions; return the places (uint32) and the bits of the escapes.

    The arguments are those of `decode`, but for two:

    Args:
        weights: uint16 [2 * pairs].
        escapes: how many of them have an exponent that is not in the table.
    """
    assert len(weights) == len(fractions) == 2 * len(exponents), len(weights)
    spans, whole = _spans(table), len(weights) // RUN
    found: dict[int, tuple[Any, Any]] = {}

    def work(start: int, stop: int) -> None:
        own = slice(start * RUN, stop * RUN)
        half = slice(start * RUN // 2, stop * RUN // 2)
        found[start] = _encode_runs(
            weights[own], spans, exponents[half], fractions[own], start * RUN, escapes
        )

    in_parts(whole, RUN, work, is_weight=True)
    if rest := len(weights) - whole * RUN:
        last = np.full(RUN, int(table[0]) << 7, np.uint16)  # beyond the last weight: no escapes
        last[:rest] = weights[-rest:]
        codes, parts = np.empty(RUN // 2, np.uint8), np.empty(RUN, np.uint8)
        found[whole] = _encode_runs(last, spans, codes, parts, whole * RUN, escapes)
        exponents[-(rest // 2) :], fractions[-rest:] = codes[: rest // 2], parts[:rest]
    places, values = zip(*(found[start] for start in sorted(found)), strict=True)
    return np.concatenate(places), np.concatenate(values)


def _spans(table: Any) -> Any:
    """Return the spans of ascending exponents that follow each other, as `encode_runs` has them."""
    starts = np.flatnonzero(np.diff(table.astype(np.int64), prepend=-2) != 1)
    sizes = np.diff(starts, append=len(table))
    return np.stack([table[starts], sizes - 1, starts], 1).astype(np.uint8).reshape(-1)


def _encode_runs(
    weights: Any, spans: Any, exponents: Any, fractions: Any, first: int, escapes: int
) -> tuple[Any, Any]:
    """Encode runs of weights, of which the first one has this number; return their escapes."""
    room = min(escapes, len(weights))
    places, values, used = np.empty(room, np.uint32), np.empty(room, np.uint16), np.zeros(1, int)
    if len(weights):
        _encode(weights, spans, exponents, fractions, first, places, values, used)
    return places[: used[0]], values[: used[0]]


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


@kernel(
    "void(u2[::1], u1[::1], u1[::1], u1[::1], i8, u4[::1], u2[::1], i8[::1])", "encode_exponents"
)
def _encode(
    weights: Any,
    spans: Any,
    exponents: Any,
    fractions: Any,
    first: int,
    places: Any,
    values: Any,
    used: Any,
) -> None:
    missing, escapes = np.empty(_RUNS, np.uint32), _u8(0)
    runs, num_spans = len(weights) // RUN, len(spans) // 3
    for begin in range(0, runs, _RUNS):
        count = min(_RUNS, runs - begin)
        encode_runs(weights, begin * RUN, count, spans, num_spans, exponents, fractions, missing)
        for run in range(_u8(count)):
            lanes, place = missing[run], _u8((_u8(begin) + run) * _u8(RUN))
            while lanes:
                if lanes & _u4(1) and escapes < _u8(len(places)):
                    places[escapes], values[escapes] = _u4(_u8(first) + place), weights[place]
                    escapes += _u8(1)
                lanes, place = _u4(lanes >> _u4(1)), place + _u8(1)
    used[0] = np.int64(escapes)
