"""The tokens of a row that can win a choice: few, found without looking at the others.

A choice is the argmax of log-probabilities plus noise (`engine/sampling/choose.py`). The tokens
left out here cannot be that argmax, so the choice among the candidates is the choice among all:

- Where top-k, top-p or min-p cut the row, only the tokens that they keep can win. The bound that
  they set is computed from a row's best blocks, and taken only if it is provably that of the whole
  row. If it is not, more blocks are looked at, in the end all.
- Where nothing is cut, a few blocks are looked at first. Their best noisy value is a bound that the
  best token of any other block reaches only with enough noise, and such noise is rare.

R rows, V tokens in whole blocks, N blocks (`blocks.py`).
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
from engine.sampling.noise import gumbel_of, uniform

PROBED = 8  # blocks whose noise is drawn first: their best bounds what the others need
# Best tokens, and blocks, looked at before the whole row is sorted.
SELECTED = (64, truncation.NUCLEUS)
FEWER = 4  # a selection must be that many times smaller than the row to pay
ROUNDING = 1e-5  # relative, of sums of exponentials in float32


@dataclass(frozen=True)
class Candidates:
    """Tokens of several rows, one entry each; those of a row in ascending order."""

    rows: Tensor  # int64
    tokens: Tensor  # int64
    values: Tensor  # (logit - the row's best) / temperature

    def noisy(self, streams: Tensor) -> Tensor:
        """Return the values plus the noise of each row's stream, float64."""
        return gumbel_of(uniform(streams[self.rows], self.tokens)).add_(self.values)


def find_candidates(logits: Rows, params: SamplingParams, streams: Tensor) -> Candidates:
    """Return the tokens of each row that can win, given the noise of its stream."""
    rows = _ScaledRows.of(logits, params.temperature)
    return _kept(rows, params) if truncation.is_truncated(params) else _within_reach(rows, streams)


@dataclass(frozen=True)
class _ScaledRows:
    """Rows whose values are (logit - the row's best) / temperature.

    These are the log-probabilities but for a constant of each row, on which no choice depends.
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
        """Return the `count` best blocks of each row, or all of a row that has few more."""
        if self.logits.num_blocks < FEWER * count:
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


def _within_reach(rows: _ScaledRows, streams: Tensor) -> Candidates:
    """Return the tokens of each row that the noise may lift to the row's best."""
    probed = rows.select(PROBED)
    noisy = gumbel_of(uniform(streams[:, None], probed.ids)).add_(probed.values)
    needed = noisy.amax(-1, keepdim=True) - rows.best
    found, tokens = find_rare(streams, rows.logits.num_blocks * BLOCK, needed)
    return Candidates(found, tokens, rows.at(found, tokens))


def _kept(rows: _ScaledRows, params: SamplingParams) -> Candidates:
    """Return the tokens that min-p, top-k and top-p keep: those at or above `floor`."""
    found: list[Candidates] = []
    numbers = torch.arange(len(rows.logits), device=rows.best.device)
    for count in (count for count in SELECTED if count > params.top_k):
        selection = rows.select(count)
        lowest, is_exact = _floor_in_selection(selection, rows.best, params, count)
        found.append(_at_least(selection, lowest.masked_fill(~is_exact, torch.inf), numbers))
        if is_exact.all():
            break
        left = ~is_exact[:, 0]
        rows, numbers = rows.only(left), numbers[left]
    else:
        selection = rows.all()
        lowest = truncation.floor(selection.values, params)
        found.append(_at_least(selection, lowest, numbers))
    if len(found) == 1:
        return found[0]
    return Candidates(
        torch.cat([part.rows for part in found]),
        torch.cat([part.tokens for part in found]),
        torch.cat([part.values for part in found]),
    )


def _at_least(selection: Selection, lowest: Tensor, numbers: Tensor) -> Candidates:
    """Return the selected tokens with values of at least `lowest` [R, 1]."""
    row, column = (selection.values >= lowest).nonzero(as_tuple=True)
    return Candidates(numbers[row], selection.ids[row, column], selection.values[row, column])


def _floor_in_selection(
    selection: Selection, best: Tensor, params: SamplingParams, count: int
) -> tuple[Tensor, Tensor]:
    """Return `floor` [R, 1] as the selected best blocks of rows have it, and whether it is exact.

    It is exact, [R, 1] bool, if it is that of the whole row: then every token above it is selected,
    and it would be the same whatever the exponentials of the other tokens sum up to. `best` [R, N]
    are the best values of all blocks.
    """
    values, lowest = selection.values, truncation.counted_floor(selection.values, params)
    is_counted = truncation.is_counted(params)
    is_exact = lowest > selection.rest
    if params.top_p < 1:
        if is_counted:
            values = values.masked_fill(values < lowest, -torch.inf)
        least = truncation.sum_of_exponentials(values)
        most = least if is_counted else least + _most_outside(selection.rest, best)
        bounds = torch.cat([most * (1 + ROUNDING), least * (1 - ROUNDING)], -1)
        ranked = values.topk(min(count, values.shape[-1])).values
        mass = ranked.double().exp().cumsum(-1)
        needed = (params.top_p * bounds)[..., None]
        floors, is_short = truncation.nucleus_floor(ranked, mass, needed)
        lowest, higher = floors[:, :1], floors[:, 1:]
        if not is_counted:
            is_exact = lowest > selection.rest
        is_exact = is_exact & ~is_short[:, :1] & (lowest == higher)
    return truncation.finite(lowest), is_exact


def _most_outside(rest: Tensor, best: Tensor) -> Tensor:
    """Return what the exponentials of the blocks not selected sum up to at most, [R, 1]."""
    outside = best.clamp(min=truncation.NEGLIGIBLE).exp_().mul_(best <= rest)
    return outside.sum(-1, keepdim=True, dtype=torch.float64) * BLOCK
