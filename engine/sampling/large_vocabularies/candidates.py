"""Candidates: the few tokens of a row that can be chosen, found without searching all tokens.

The chosen token is the argmax of log-probabilities plus noise (`engine/sampling/choose.py`). Tokens
that are left out here cannot be that argmax, so the argmax of the candidates is that of all tokens:

- With top-k, top-p or min-p, only the tokens that these keep can be chosen. The lowest value that
  they keep is computed from a row's best blocks, and used only if it is provably that of the whole
  row. Otherwise more blocks are searched, and finally all of them.
- Without these, a few blocks are searched first. A token of another block needs a certain amount of
  noise to exceed the best noisy value found there, and so much noise is rare.

In shapes, R is the number of rows, V the number of tokens, padded to whole blocks, and N the number
of blocks (`blocks.py`).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling import truncation
from engine.sampling.large_vocabularies.blocks import (
    BLOCK,
    Rows,
    Selection,
    all_blocks,
    best_blocks,
)
from engine.sampling.large_vocabularies.rare_noise import find_rare
from engine.sampling.noise import gumbel_from_uniform, uniform

PROBED_BLOCKS = 8  # blocks searched first; their best noisy value bounds the noise others need
# How many best blocks, and tokens of them, are tried before the whole row is sorted.
SELECTION_SIZES = (64, truncation.MAX_NUCLEUS)
MIN_REDUCTION = 4  # a selection less than this many times smaller than the row saves no time
ROUNDING = 1e-5  # relative error of sums of exponentials in float32


@dataclass(frozen=True)
class Candidates:
    """Candidates of several rows, one entry per token; tokens of a row are in ascending order."""

    rows: Tensor  # int64
    tokens: Tensor  # int64
    values: Tensor  # (logit - the row's best) / temperature

    def noisy(self, streams: Tensor) -> Tensor:
        """Return the values plus the noise of each row's stream, float64."""
        return gumbel_from_uniform(uniform(streams[self.rows], self.tokens)).add_(self.values)


def find_candidates(logits: Rows, params: SamplingParams, streams: Tensor) -> Candidates:
    """Return the tokens of each row that can be chosen, given the noise stream of each row, [R]."""
    rows = _ScaledRows.of(logits, params.temperature)
    if truncation.is_truncated(params):
        return _candidates_above_floor(rows, params)
    return _candidates_by_noise(rows, streams)


@dataclass(frozen=True)
class _ScaledRows:
    """Rows whose values are (logit - the row's best logit) / temperature.

    They are log-probabilities up to a constant of each row, which does not change the argmax.
    """

    logits: Rows
    top: Tensor  # [R, 1] the row's best logit
    best: Tensor  # [R, N] the best value of each block
    temperature: float

    @classmethod
    def of(cls, logits: Rows, temperature: float) -> "_ScaledRows":
        top = logits.best.amax(-1, keepdim=True)
        return cls(logits, top, (logits.best - top).div_(temperature), temperature)

    def select(self, count: int) -> Selection:
        """Return the `count` best blocks of each row, or all blocks if that saves no time."""
        if self.logits.num_blocks < MIN_REDUCTION * count:
            return self.all()
        return self._scale(best_blocks(self.logits, count))

    def all(self) -> Selection:
        """Return all blocks of each row."""
        return self._scale(all_blocks(self.logits))

    def at(self, rows: Tensor, tokens: Tensor) -> Tensor:
        """Return the values of single tokens."""
        return self.logits.at(rows, tokens).sub_(self.top[rows, 0]).div_(self.temperature)

    def only(self, rows: Tensor) -> "_ScaledRows":
        """Return the rows selected by a boolean mask [R]."""
        return replace(
            self, logits=self.logits.only(rows), top=self.top[rows], best=self.best[rows]
        )

    def _scale(self, selection: Selection) -> Selection:
        """Scale a selection in place: nothing else refers to its values."""
        selection.values.sub_(self.top).div_(self.temperature)
        return replace(selection, rest=(selection.rest - self.top).div_(self.temperature))


def _candidates_by_noise(rows: _ScaledRows, streams: Tensor) -> Candidates:
    """Return the tokens of each row whose value plus noise may be the best one of the row."""
    probed = rows.select(PROBED_BLOCKS)
    noisy = gumbel_from_uniform(uniform(streams[:, None], probed.ids)).add_(probed.values)
    needed = noisy.amax(-1, keepdim=True) - rows.best
    found, tokens = find_rare(streams, rows.logits.num_blocks * BLOCK, needed)
    return Candidates(found, tokens, rows.at(found, tokens))


def _candidates_above_floor(rows: _ScaledRows, params: SamplingParams) -> Candidates:
    """Return the tokens that min-p, top-k and top-p keep: those not below `truncation_floor`."""
    found: list[Candidates] = []
    numbers = torch.arange(len(rows.logits), device=rows.best.device)
    for count in (count for count in SELECTION_SIZES if count > params.top_k):
        selection = rows.select(count)
        lowest, is_exact = _floor_in_selection(selection, rows.best, params, count)
        found.append(_at_least(selection, lowest.masked_fill(~is_exact, torch.inf), numbers))
        if is_exact.all():
            break
        left = ~is_exact[:, 0]
        rows, numbers = rows.only(left), numbers[left]
    else:
        selection = rows.all()
        lowest = truncation.truncation_floor(selection.values, params)
        found.append(_at_least(selection, lowest, numbers))
    if len(found) == 1:
        return found[0]
    return Candidates(
        torch.cat([part.rows for part in found]),
        torch.cat([part.tokens for part in found]),
        torch.cat([part.values for part in found]),
    )


def _at_least(selection: Selection, lowest: Tensor, numbers: Tensor) -> Candidates:
    """Return the selected tokens with values of at least `lowest` [R, 1].

    `numbers` [R] are the numbers of the rows that the result names.
    """
    row, column = (selection.values >= lowest).nonzero(as_tuple=True)
    return Candidates(numbers[row], selection.ids[row, column], selection.values[row, column])


def _floor_in_selection(
    selection: Selection, best: Tensor, params: SamplingParams, count: int
) -> tuple[Tensor, Tensor]:
    """Return `truncation_floor` [R, 1] computed from the selected blocks, and whether it is exact.

    It is exact, [R, 1] bool, if it equals that of the whole row. This holds if all tokens above it
    are selected, and if the lowest and the highest possible sum of all exponentials give the same
    floor.

    Args:
        selection: the best blocks of each row.
        best: the best value of every block, [R, N].
        count: how many of the best tokens to use for top-p.
    """
    values, lowest = selection.values, truncation.min_p_top_k_floor(selection.values, params)
    has_min_p_or_top_k = truncation.has_min_p_or_top_k(params)
    is_exact = lowest > selection.rest
    if params.top_p < 1:
        if has_min_p_or_top_k:
            values = values.masked_fill(values < lowest, -torch.inf)
        least = truncation.sum_of_exponentials(values)
        most = least if has_min_p_or_top_k else least + _max_sum_outside(selection.rest, best)
        bounds = torch.cat([most * (1 + ROUNDING), least * (1 - ROUNDING)], -1)
        ranked = values.topk(min(count, values.shape[-1])).values
        mass = ranked.double().exp().cumsum(-1)
        needed = (params.top_p * bounds)[..., None]
        floors, is_short = truncation.nucleus_floor(ranked, mass, needed)
        lowest, higher = floors[:, :1], floors[:, 1:]
        if not has_min_p_or_top_k:
            is_exact = lowest > selection.rest
        is_exact = is_exact & ~is_short[:, :1] & (lowest == higher)
    return truncation.make_finite(lowest), is_exact


def _max_sum_outside(rest: Tensor, best: Tensor) -> Tensor:
    """Return an upper bound [R, 1] of the sum of exponentials of all blocks not selected."""
    outside = best.clamp(min=truncation.NEGLIGIBLE).exp_().mul_(best <= rest)
    return outside.sum(-1, keepdim=True, dtype=torch.float64) * BLOCK
