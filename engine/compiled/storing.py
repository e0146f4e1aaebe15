"""Rounding of float32 values to the type of a tensor, for kernels that fill one."""

from typing import Any

import numpy as np
import torch

from engine.compiled.compiler import helper

RUN = 2048  # values that a kernel computes before it stores them; 512 took up to 1.2 times as long
FLOAT32, BFLOAT16, _FLOAT16 = 0, 1, 2
KINDS = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: _FLOAT16}

_u2, _u4 = np.uint16, np.uint32
_INFINITY = _u4(0x7F800000)
_NOT_SIGN = _u4(0x7FFFFFFF)
_POWERS = np.array([2.0 ** (exponent - 25) for exponent in range(32)], np.float32)


@helper
def write(values: Any, out: Any, at: int, kind: int) -> None:
    """Store float32 values, rounded to nearest even, from place `at` of `out` on.

    Args:
        values: float32 [n].
        out: the bytes of the tensor, uint8.
        at: the place of the first value, counted in values of the tensor.
        kind: the type of the tensor.
    """
    if kind == FLOAT32:
        out.view(np.float32)[at : at + len(values)] = values
    elif kind == BFLOAT16:
        _write_bfloat16(values.view(np.uint32), out.view(np.uint16)[at : at + len(values)])
    else:
        _write_float16(values, out.view(np.uint16)[at : at + len(values)])


@helper
def _write_bfloat16(values: Any, out: Any) -> None:
    for at in range(len(values)):
        bits = values[at]
        odd = _u4(_u4(bits >> _u4(16)) & _u4(1))
        rounded = _u4(_u4(bits + _u4(_u4(0x7FFF) + odd)) >> _u4(16))
        is_nan = _u4(bits & _NOT_SIGN) > _INFINITY
        out[at] = _u2(_u4(0x7FC0) if is_nan else rounded)


@helper
def _write_float16(values: Any, out: Any) -> None:
    # The sum with 0.5 rounds to multiples of 2^-24, which are the subnormal numbers of float16.
    shifted = (np.abs(values) + np.float32(0.5)).view(np.uint32)
    all_bits = values.view(np.uint32)
    for at in range(len(values)):
        bits = all_bits[at]
        size = _u4(bits & _NOT_SIGN)
        odd = _u4(_u4(size >> _u4(13)) & _u4(1))
        found = _u4(_u4(_u4(size - _u4(0x38000000)) + _u4(_u4(0x0FFF) + odd)) >> _u4(13))
        if size < _u4(0x38800000):  # 2^-14, the smallest normal number
            found = _u4(shifted[at] - _u4(0x3F000000))
        if size >= _u4(0x47800000):  # 2^16
            found = _u4(0x7C00)
        if size > _INFINITY:
            found = _u4(0x7E00)
        out[at] = _u2(found | _u4(_u4(bits >> _u4(16)) & _u4(0x8000)))


@helper
def half(low: Any, high: Any) -> Any:
    """Return the float16 of two bytes as float32."""
    exponent, fraction = np.int32(high >> 2) & np.int32(31), np.int32(low) | np.int32(high & 3) << 8
    if exponent == 31:
        size = np.float32(np.inf) if fraction == 0 else np.float32(np.nan)
    elif exponent == 0:
        size = np.float32(fraction) * np.float32(2.0**-24)
    else:
        size = np.float32(fraction | 1024) * _POWERS[exponent]
    return -size if high & 128 else size
