"""Functions whose bits are the same in compiled code and in operations of torch.

Libraries and processors have exponentials of different bits. These consist of single products and
sums. They are written once, for vectors of compiled code (`vectors.Vector`) and for tensors.
"""

from typing import Any, Protocol

import torch
from torch import Tensor

NOTHING = float("-inf")  # the score of a key that is not seen
_LEAST = -87.0  # exp of less is taken for 0
_ROUND = 1.5 * 2**23  # the sum of this and a small number has the nearest integer in its last bits
_ROUND_BITS = 0x4B400000
# After Cephes' expf and tanhf.
_LOG2_E, _LN_2_HIGH, _LN_2_LOW = 1.44269504, 0.693359375, -2.12194440e-4
_EXP = (1.98756915e-4, 1.39819995e-3, 8.33345191e-3, 4.16657959e-2, 0.166666655, 0.5)
_TANH = (-5.70498873e-3, 2.06390888e-2, -5.37397155e-2, 0.133314422, -0.333332819)
_SMALL = 0.625  # up to which tanh is a polynomial


class Operations(Protocol):
    """Operations that tensors and vectors do not share."""

    def select(self, condition: Any, yes: Any, no: Any) -> Any:
        """Return `yes` where the condition holds, else `no`."""

    def power_of_two(self, exponent: Any, offset: int) -> Any:
        """Return 2 to the power of the bits of `exponent`, as integers, minus `offset`."""


class TensorOperations:
    """The operations on tensors of float32."""

    def select(self, condition: Tensor, yes: Tensor | float, no: Tensor | float) -> Tensor:
        """Return `yes` where the condition holds, else `no`."""
        return torch.where(condition, yes, no)

    def power_of_two(self, exponent: Tensor, offset: int) -> Tensor:
        """Return 2 to the power of the bits of `exponent`, as integers, minus `offset`."""
        return (exponent.view(torch.int32) - (offset - 127) << 23).view(torch.float32)


def weight(operations: Operations, score: Any, peak: Any) -> Any:
    """Return exp(score - peak) for scores up to the peak, and 0 for scores of -inf."""
    rest = score - peak
    is_zero = (score == NOTHING) | (rest < _LEAST)
    return operations.select(is_zero, 0.0, _exp(operations, rest))


def cap(operations: Operations, score: Any, bound: Any) -> Any:
    """Return tanh(score / bound) * bound, and -inf for scores of -inf."""
    return operations.select(score == NOTHING, NOTHING, _tanh(operations, score / bound) * bound)


def silu(operations: Operations, x: Any) -> Any:
    """Return x / (1 + exp(-x))."""
    power = weight(operations, operations.select(x < 0.0, x, x * -1.0), 0.0)
    return x * operations.select(x < 0.0, power, 1.0) / (power + 1.0)


def _exp(operations: Operations, x: Any) -> Any:
    shifted = x * _LOG2_E + _ROUND
    power = shifted - _ROUND
    rest = (x - power * _LN_2_HIGH) - power * _LN_2_LOW
    found = _polynomial(rest, _EXP) * (rest * rest) + rest + 1.0
    return found * operations.power_of_two(shifted, _ROUND_BITS)


def _tanh(operations: Operations, x: Any) -> Any:
    size = operations.select(x < 0.0, x * -1.0, x)
    square = x * x
    near = _polynomial(square, _TANH) * square * x + x
    power = weight(operations, size * -2.0, 0.0)
    far = (power * -1.0 + 1.0) / (power + 1.0)
    far = operations.select(x < 0.0, far * -1.0, far)
    return operations.select(size < _SMALL, near, far)


def _polynomial(x: Any, coefficients: tuple[float, ...]) -> Any:
    first, second, *others = coefficients
    found = x * first + second
    for coefficient in others:
        found = found * x + coefficient
    return found
