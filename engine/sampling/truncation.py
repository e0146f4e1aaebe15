"""Min-p, top-k and top-p: the value below which a token of a row cannot be drawn.

All three keep a row's best tokens, so each is a floor under the kept values. Tokens that tie with
the floor are kept, so that the kept set does not depend on the order of a sort. R rows, V tokens in
whole blocks. Values are log-probabilities up to a constant of each row.
"""

import math

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.large_vocabularies.blocks import BLOCK

NUCLEUS = 1024  # top-p looks at that many best tokens before it sorts all of them
NEGLIGIBLE = -80.0  # exponentials below its own add nothing to a sum, and take ten times as long


def is_truncated(params: SamplingParams) -> bool:
    """Return True if min-p, top-k or top-p leave tokens out."""
    return is_counted(params) or params.top_p < 1


def is_counted(params: SamplingParams) -> bool:
    """Return True if min-p or top-k leave tokens out, whatever their probabilities sum up to."""
    return params.min_p > 0 or params.top_k > 0


def floor(values: Tensor, params: SamplingParams) -> Tensor:
    """Return the value [R, 1] below which a token of a row [R, V] is left out.

    Each row's best value is 0. Top-p counts the probabilities of the tokens that the others keep.
    """
    lowest = counted_floor(values, params)
    if params.top_p < 1:
        values = values.masked_fill(values < lowest, -torch.inf)
        needed = params.top_p * sum_of_exponentials(values)
        ranked = values.topk(min(NUCLEUS, values.shape[-1])).values
        lowest, is_short = _nucleus_floor_of(ranked, needed)
        for row in is_short[:, 0].nonzero()[:, 0].tolist() if values.shape[-1] > NUCLEUS else ():
            everything = values[row].sort(descending=True).values[None]
            lowest[row] = _nucleus_floor_of(everything, needed[row, None])[0][0]
    return finite(lowest)


def counted_floor(
    values: Tensor,
    params: SamplingParams,
    *,
    best: Tensor | float = 0.0,
    is_sorted: bool = False,
) -> Tensor:
    """Return the value [R, 1] below which min-p or top-k leave a token out of rows [R, K].

    Args:
        best: the best value of each row, [R, 1] or one number.
        is_sorted: whether the values of a row descend.
    """
    lowest = torch.full_like(values[:, :1], -torch.inf)
    if params.min_p > 0:
        lowest.fill_(math.log(params.min_p)).add_(best)
    if 0 < params.top_k <= values.shape[-1]:
        ranked = values if is_sorted else values.topk(params.top_k).values
        lowest = torch.maximum(lowest, ranked[:, params.top_k - 1, None])
    return lowest


def nucleus_floor(ranked: Tensor, mass: Tensor, needed: Tensor | float) -> tuple[Tensor, Tensor]:
    """Return the value [R, n] of the last token that top-p keeps, and where tokens are too few.

    Nucleus sampling (arXiv 1904.09751, section 3.1): the smallest set of best tokens whose mass
    reaches what is needed. Where all tokens together do not reach it (second result, [R, n] bool),
    the value is that of the last one.

    Args:
        ranked: the best values of each row, [R, K], descending.
        mass: what the exponentials of these values sum up to, [R, K] from the first to each.
        needed: the mass, [R, n, 1] or one number.
    """
    is_below = mass[:, None] < needed
    num_before = is_below.sum(-1).clamp_(max=ranked.shape[-1] - 1)
    return ranked.gather(-1, num_before), is_below[..., -1]


def _nucleus_floor_of(ranked: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
    return nucleus_floor(ranked, ranked.double().exp().cumsum(-1), needed[..., None])


def sum_of_exponentials(values: Tensor) -> Tensor:
    """Return the sum of each row's exponentials, float64 [R, 1].

    It is summed block by block: threads would share the sum of a lone long row, and round it in
    another way than that of a row among others.
    """
    weights = values.clamp(min=NEGLIGIBLE).exp_()
    return weights.view(len(values), -1, BLOCK).sum(-1).double().sum(-1, keepdim=True)


def finite(lowest: Tensor) -> Tensor:
    """Return a floor above minus infinity, which leaves out banned tokens. Overwrites `lowest`."""
    return lowest.clamp_(min=torch.finfo(lowest.dtype).min)
