"""Temperature, min-p, top-k and top-p, computed only where a row is looked at.

R rows, V tokens in whole blocks, N blocks (`engine/sampling/blocks.py`).
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.blocks import BLOCK, Pool, Rows, best_blocks, whole_pool

NUCLEUS = 1024  # top-p looks at so many tokens before it sorts all of them
POOLS = (64, NUCLEUS)  # best tokens, and blocks, looked at before the whole row is sorted
FEWER = 4  # a pool must be so many times smaller than the row to pay
ROUNDING = 1e-5  # relative, of sums of exponentials in float32
NOTHING = -80.0  # exponentials below its own add nothing to a sum, and take ten times as long


@dataclass(frozen=True)
class Hot:
    """Rows at a temperature: (logit - the row's best) / temperature.

    These are log-probabilities but for a constant of each row, on which no choice depends.
    """

    logits: Rows
    top: Tensor  # [R, 1] the row's best logit
    best: Tensor  # [R, N] the best of each block, at the temperature
    temperature: float

    def whole(self) -> Pool:
        """All of each row."""
        return self._heated(whole_pool(self.logits))

    def pool(self, count: int) -> Pool:
        """The `count` best blocks of each row; all of a row that has few more."""
        if self.logits.num_blocks < FEWER * count:
            return self.whole()
        return self._heated(best_blocks(self.logits, count))

    def at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Some tokens of some rows."""
        return self.logits.at(rows, tokens).sub_(self.top[rows, 0]).div_(self.temperature)

    def only(self, rows: Tensor) -> "Hot":
        """Those of a mask [R]."""
        return replace(
            self, logits=self.logits.only(rows), top=self.top[rows], best=self.best[rows]
        )

    def _heated(self, pool: Pool) -> Pool:
        """A pool that nobody else has."""
        pool.values.sub_(self.top).div_(self.temperature)
        return replace(pool, rest=(pool.rest - self.top).div_(self.temperature))


def heat(logits: Rows, params: SamplingParams) -> Hot:
    """Rows at the temperature."""
    top = logits.best.amax(-1, keepdim=True)
    best = (logits.best - top).div_(params.temperature)
    return Hot(logits, top, best, params.temperature)


@dataclass(frozen=True)
class Kept:
    """Tokens that the truncation rules keep, of several rows: one entry each."""

    rows: Tensor  # int64
    tokens: Tensor  # int64
    values: Tensor  # at the temperature


def is_truncated(params: SamplingParams) -> bool:
    """Whether top-k, top-p or min-p leave tokens out."""
    return _is_counted(params) or params.top_p < 1


def _is_counted(params: SamplingParams) -> bool:
    return params.min_p > 0 or params.top_k > 0


def kept(hot: Hot, params: SamplingParams) -> Kept:
    """What min-p, top-k and top-p leave of rows.

    The tokens at or above `floor`, found in the best blocks of a row where that lies above all of
    the others.
    """
    found: list[Kept] = []
    rows = torch.arange(len(hot.logits), device=hot.best.device)
    for count in (pool for pool in POOLS if pool > params.top_k):
        pool = hot.pool(count)
        lowest, exact = _floor_in_pool(pool, hot.best, params, count)
        found.append(_kept_of(pool, lowest.masked_fill(~exact, torch.inf), rows))
        if exact.all():
            break
        left = ~exact[:, 0]
        hot, rows = hot.only(left), rows[left]
    else:
        pool = hot.whole()
        found.append(_kept_of(pool, floor(pool.values, params), rows))
    if len(found) == 1:
        return found[0]
    return Kept(
        torch.cat([part.rows for part in found]),
        torch.cat([part.tokens for part in found]),
        torch.cat([part.values for part in found]),
    )


def _kept_of(pool: Pool, lowest: Tensor, rows: Tensor) -> Kept:
    row, column = (pool.values >= lowest).nonzero(as_tuple=True)
    return Kept(rows[row], pool.ids[row, column], pool.values[row, column])


def floor(values: Tensor, params: SamplingParams) -> Tensor:
    """The value [R, 1] below which min-p, top-k or top-p leave a token out of a row [R, V].

    Top-p goes by what the others leave. Values at a temperature, as of `heat`.
    """
    lowest = _counted_floor(values, params)
    if params.top_p < 1:
        values = values.masked_fill(values < lowest, -torch.inf)
        lowest = _nucleus_floor(values, params.top_p * _sum_of_exponentials(values))
    return _finite(lowest)


def _floor_in_pool(
    pool: Pool, best: Tensor, params: SamplingParams, count: int
) -> tuple[Tensor, Tensor]:
    """`floor` of rows of which the pool has the best blocks; `best` [R, N] is that of all.

    Second result, [R, 1] bool: whether it is that of the whole row. Then every token above it is in
    the pool, and it would be the same whatever the exponentials of the others sum up to.
    """
    values, lowest = pool.values, _counted_floor(pool.values, params)
    exact = lowest > pool.rest
    if params.top_p < 1:
        if _is_counted(params):
            values = values.masked_fill(values < lowest, -torch.inf)
        least = _sum_of_exponentials(values)
        most = least if _is_counted(params) else least + _most_outside(pool.rest, best)
        bounds = torch.cat([most * (1 + ROUNDING), least * (1 - ROUNDING)], -1)
        ranked = values.topk(min(count, values.shape[-1])).values
        floors, is_reached = _floors_of_sorted(ranked, params.top_p * bounds)
        lowest, higher = floors[:, :1], floors[:, 1:]
        if not _is_counted(params):
            exact = lowest > pool.rest
        exact = exact & is_reached[:, :1] & (lowest == higher)
    return _finite(lowest), exact


def _finite(lowest: Tensor) -> Tensor:
    """A floor that leaves out what is banned."""
    return lowest.clamp_(min=torch.finfo(lowest.dtype).min)


def _sum_of_exponentials(values: Tensor) -> Tensor:
    """Of each row: float64 [R, 1].

    Block by block: threads would share the sum of a lone long row, and round it in another way
    than that of a row among others.
    """
    weights = values.clamp(min=NOTHING).exp_()
    return weights.view(len(values), -1, BLOCK).sum(-1).double().sum(-1, keepdim=True)


def _most_outside(rest: Tensor, best: Tensor) -> Tensor:
    """What the exponentials of the blocks outside of a pool sum up to, at most: [R, 1]."""
    outside = best.clamp(min=NOTHING).exp_().mul_(best <= rest)
    return outside.sum(-1, keepdim=True, dtype=torch.float64) * BLOCK


def _counted_floor(values: Tensor, params: SamplingParams) -> Tensor:
    """The value [R, 1] below which min-p or top-k leave a token out."""
    lowest = torch.full_like(values[:, :1], -torch.inf)
    if params.min_p > 0:
        lowest.fill_(math.log(params.min_p))  # a row's best is 0
    if 0 < params.top_k < values.shape[-1]:
        lowest = torch.maximum(lowest, values.topk(params.top_k).values[:, -1:])
    return lowest


def _nucleus_floor(values: Tensor, needed: Tensor) -> Tensor:
    """The value [R, 1] of the last token that top-p keeps.

    Nucleus sampling (arXiv 1904.09751, section 3.1): the smallest set of best tokens whose
    exponentials sum up to what is needed [R, 1].
    """
    size = values.shape[-1]
    ranked = values.topk(min(NUCLEUS, size)).values
    lowest, is_reached = _floors_of_sorted(ranked, needed)
    for row in (~is_reached[:, 0]).nonzero()[:, 0].tolist() if size > NUCLEUS else ():
        everything = values[row].sort(descending=True).values[None]
        lowest[row] = _floors_of_sorted(everything, needed[row, None])[0][0]
    return lowest


def _floors_of_sorted(values: Tensor, needed: Tensor) -> tuple[Tensor, Tensor]:
    """Where the exponentials of descending values [R, K] sum up to what is needed: [R, n].

    It is the last of them where they do not, which the second result, [R, n] bool, tells.
    """
    mass = values.double().exp().cumsum(-1)
    num_before = (mass[:, None] < needed[..., None]).sum(-1)
    return values.gather(-1, num_before.clamp_(max=values.shape[-1] - 1)), mass[:, -1:] >= needed
