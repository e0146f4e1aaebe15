"""Scales of 4-bit weights, fitted by least squares that weight each input channel.

A linear layer's output differs by the sum over its inputs of weight error times input. If the
inputs were independent, the mean square of that sum would be the sum of the squared weight errors,
each times the mean square of its input channel. That is the importance of a channel here (it is the
diagonal of the Hessian that GPTQ uses, Frantar et al., arXiv 2210.17323, section 3).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

ROUNDS = 3  # of choosing levels, then scales; a fourth changed the error by under 1 % (measured)
FLOOR = 1e-3  # importance that every channel has at least, as a share of the layer's mean
_TINY = 1e-12  # a variance of levels, or a sum of importances, below this one counts as none

# From values of groups [rows, groups, group], scale and zero [rows, groups, 1] to their levels.
Round = Callable[[Tensor, Tensor, Tensor], Tensor]


def group_weights(importance: Tensor, group: int) -> Tensor:
    """Return the weights of the channels in each group, [groups, group], whose sum is 1.

    Args:
        importance: the mean square of each input channel, [in], float32.
    """
    floor = FLOOR * importance.mean() + _TINY
    grouped = importance.clamp(min=floor).view(-1, group)
    return grouped / grouped.sum(-1, keepdim=True)


def fit_scale_and_zero(
    values: Tensor, weights: Tensor, starts: Iterable[tuple[Tensor, Tensor]], to_levels: Round
) -> tuple[Tensor, Tensor]:
    """Return scale and zero [rows, groups, 1] that approximate `values` by level * scale + zero.

    The error has many local minima: several starts lead to a tenth less of it than the first alone
    (measured on a real model).

    Args:
        values: [rows, groups, group], float32.
        weights: those of `group_weights`.
        starts: scales and zeros to begin with. The first pair, in the type in which they are
            stored, is returned for groups in which the fit has no less error.
        to_levels: returns the levels of values, given scale and zero.
    """
    mean = (values * weights).sum(-1, keepdim=True)
    centred = (values - mean) * weights

    def refine(scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the best scale and zero for the levels of these, and how much error they save."""
        levels = to_levels(values, scale, zero)
        covariance = (levels * centred).sum(-1, keepdim=True)
        weighted = levels * weights
        level = weighted.sum(-1, keepdim=True)
        variance = weighted.mul_(levels).sum(-1, keepdim=True) - level * level
        # Stored values are rounded first, so that the zero makes up for the scale's rounding.
        slope = (covariance / variance.clamp(min=_TINY)).to(dtype).float()
        scale = torch.where((variance > _TINY) & (slope > 0), slope, scale)
        offset = (mean - scale * level).to(dtype).float()
        return scale, offset, scale * (2 * covariance - scale * variance)

    known, *others = starts
    dtype = known[0].dtype
    best = refine(known[0].float(), known[1].float())
    for scale, zero in others:
        found = refine(scale.float(), zero.float())
        is_better = found[2] > best[2]
        scale, zero, saved = (
            torch.where(is_better, new, old) for new, old in zip(found, best, strict=True)
        )
        best = scale, zero, saved
    for _ in range(ROUNDS - 1):
        best = refine(best[0], best[1])
    return _better(values, weights, known, best[:2], to_levels)


def fit_scale(values: Tensor, weights: Tensor, scale: Tensor, to_levels: Round) -> Tensor:
    """Return the scale [rows, groups, 1] that approximates `values` by level * scale.

    The arguments are those of `fit_scale_and_zero`; `scale` is the only start.
    """
    zero = torch.zeros_like(scale)
    fitted = scale.float()
    for _ in range(ROUNDS):
        levels = to_levels(values, fitted, zero)
        weighted = levels * weights
        square = (weighted * levels).sum(-1, keepdim=True)
        slope = (weighted * values).sum(-1, keepdim=True) / square.clamp(min=_TINY)
        fitted = torch.where((square > _TINY) & (slope > 0), slope, fitted)
    return _better(values, weights, (scale, zero), (fitted, zero), to_levels)[0]


def _better(
    values: Tensor,
    weights: Tensor,
    known: tuple[Tensor, Tensor],
    fitted: tuple[Tensor, Tensor],
    to_levels: Round,
) -> tuple[Tensor, Tensor]:
    """Return for each group the scale and zero with the smaller weighted error, in stored types.

    Levels and scales are chosen in turn, and rounded, so a fit may end worse than it began.
    """
    stored = fitted[0].to(known[0].dtype), fitted[1].to(known[1].dtype)
    errors = []
    for scale, zero in (known, stored):
        scale, zero = scale.float(), zero.float()
        error = torch.addcmul(zero, to_levels(values, scale, zero), scale).sub_(values)
        errors.append((error.square_() * weights).sum(-1, keepdim=True))
    is_better = errors[1] < errors[0]
    return torch.where(is_better, stored[0], known[0]), torch.where(is_better, stored[1], known[1])
