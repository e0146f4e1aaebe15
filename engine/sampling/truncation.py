"""Truncation by min-p, top-k and top-p: the value below which a token of a row is left out.

All three keep the best tokens of a row, so each of them amounts to a lowest value, the floor.
Tokens with exactly that value are kept, so that the result does not depend on the order of a sort.

Values are log-probabilities up to a constant of each row. In shapes, R is the number of rows, and V
the number of tokens, padded to whole blocks.
"""

import math

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.large_vocabularies.blocks import BLOCK

MAX_NUCLEUS = 1024  # top-p tries this many best tokens before it sorts a whole row
NEGLIGIBLE = -80.0  # lower values add nothing to a sum of exponentials, and take ten times as long


def is_truncated(params: SamplingParams) -> bool:
    """Return True if min-p, top-k or top-p is set, so that tokens may be left out."""
    return has_min_p_or_top_k(params) or params.top_p < 1


def has_min_p_or_top_k(params: SamplingParams) -> bool:
    """Return True if min-p or top-k is set: both work without a sum of probabilities."""
    return params.min_p > 0 or params.top_k > 0


def truncation_floor(values: Tensor, params: SamplingParams) -> Tensor:
    """Return the value [R, 1] below which a token of a row is left out.

    Top-p is applied to the probabilities of the tokens that min-p and top-k keep.

    Args:
        values: the rows [R, V]; the best value of each row is 0.
    """
    lowest, is_short = bounded_floor(values, params)
    for row in () if is_short is None else is_short[:, 0].nonzero()[:, 0].tolist():
        own = values[row, None]
        own = own.masked_fill(own < min_p_top_k_floor(own, params), -torch.inf)
        needed = params.top_p * sum_of_exponentials(own)
        lowest[row] = _nucleus_floor_of(own.sort(descending=True).values, needed)[0][0]
    return make_finite(lowest)


def bounded_floor(values: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor | None]:
    """Return the floor [R, 1] as `truncation_floor` does, from at most `MAX_NUCLEUS` best tokens.

    The second result, [R, 1] bool, says in which rows these are too few for top-p; None: nowhere.
    """
    lowest = min_p_top_k_floor(values, params)
    if params.top_p >= 1:
        return make_finite(lowest), None
    values = values.masked_fill(values < lowest, -torch.inf)
    needed = params.top_p * sum_of_exponentials(values)
    ranked = values.topk(min(MAX_NUCLEUS, values.shape[-1])).values
    lowest, is_short = _nucleus_floor_of(ranked, needed)
    return make_finite(lowest), is_short if values.shape[-1] > MAX_NUCLEUS else None


def min_p_top_k_floor(
    values: Tensor,
    params: SamplingParams,
    *,
    best: Tensor | float = 0.0,
    is_sorted: bool = False,
) -> Tensor:
    """Return the value [R, 1] below which min-p or top-k leaves a token out.

    Args:
        values: the rows [R, K], or the best values of longer rows.
        best: the best value of each row, [R, 1] or one number.
        is_sorted: whether the values of each row are in descending order.
    """
    lowest = torch.full_like(values[:, :1], -torch.inf)
    if params.min_p > 0:
        lowest.fill_(math.log(params.min_p)).add_(best)
    if 0 < params.top_k <= values.shape[-1]:
        ranked = values if is_sorted else values.topk(params.top_k).values
        lowest = torch.maximum(lowest, ranked[:, params.top_k - 1, None])
    return lowest


def nucleus_floor(ranked: Tensor, mass: Tensor, needed: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the lowest value [R, n] that top-p keeps, and whether K tokens are too few for it.

    Nucleus sampling (arXiv 1904.09751, section 3.1) keeps the smallest set of best tokens whose
    probability mass reaches the needed mass. Where the K tokens together do not reach it, the
    second result, [R, n] bool, is True, and the value is that of the last token.

    Args:
        ranked: the K best values of each row, [R, K], descending.
        mass: the cumulative sums of the exponentials of `ranked`, [R, K].
        needed: the needed mass: n masses of each row, [R, n, 1], or one number.
    """
    is_below = mass[:, None] < needed
    num_before = is_below.sum(-1).clamp_(max=ranked.shape[-1] - 1)
    return ranked.gather(-1, num_before), is_below[..., -1]


def _nucleus_floor_of(ranked: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cumulative mass of `ranked` and call `nucleus_floor`. `needed` is [R, n]."""
    return nucleus_floor(ranked, ranked.double().exp().cumsum(-1), needed[..., None])


def sum_of_exponentials(values: Tensor) -> Tensor:
    """Return the sum of each row's exponentials, float64 [R, 1].

    Blocks are summed first, so that the rounding does not depend on the number of rows: PyTorch
    splits the sum of a single long row between threads, but not that of one row among others.
    """
    weights = values.clamp(min=NEGLIGIBLE).exp_()
    return weights.view(len(values), -1, BLOCK).sum(-1).double().sum(-1, keepdim=True)


def make_finite(lowest: Tensor) -> Tensor:
    """Raise a floor of minus infinity in place, so that banned tokens are below it."""
    return lowest.clamp_(min=torch.finfo(lowest.dtype).min)
