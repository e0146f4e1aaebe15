"""The distribution that tokens are drawn from: penalties, bias, bans, temperature, truncation.

V vocabulary, R rows.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.blocks import Pool, best_blocks, best_of_blocks, num_blocks, whole_pool
from engine.messages import SamplingParams

COLDEST = 1e-5  # a temperature below this is 0: logits divided by it would overflow
NUCLEUS = 1024  # top-p looks at so many tokens before it sorts all of them
POOLS = (64, NUCLEUS)  # best tokens, and blocks, looked at before the whole row is sorted
FEWER = 4  # a pool must be so many times smaller than the row to pay

_ROOM = 256  # columns for the first new tokens of an answer


class TokenCounts:
    """Which tokens a sequence holds, for the penalties: its prompt's, and how often its answer's.

    Kept sparse: a vocabulary-sized count per sequence would cost more than the tokens themselves.
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        self._prompt = frozenset(prompt)
        self._output: dict[int, int] = {}
        self._table: _Table | None = None  # made when first asked for: most requests have no use

    def add(self, token: int) -> None:
        """Count one emitted token."""
        often = self._output[token] = self._output.get(token, 0) + 1
        if self._table is not None:
            self._table.set(token, often)

    def table(self) -> tuple[Tensor, Tensor]:
        """Distinct tokens of prompt and answer, int64, and how often each is in the answer."""
        if self._table is None:
            self._table = _Table(dict.fromkeys(self._prompt, 0) | self._output)
        return self._table.ids, self._table.often

    def along(self, path: Sequence[int]) -> dict[int, int]:
        """Token of `path` -> how often it occurs in the answer followed by the path."""
        counts: dict[int, int] = {}
        for token in path:
            counts[token] = counts.get(token, self._output.get(token, 0)) + 1
        return counts


class _Table:
    """Token counts as tensors, one column a token, with room to grow."""

    def __init__(self, counts: dict[int, int]) -> None:
        self._column = {token: column for column, token in enumerate(counts)}
        self._ids = torch.tensor([*counts, *[0] * _ROOM])
        self._often = torch.tensor([*counts.values(), *[0] * _ROOM])

    @property
    def ids(self) -> Tensor:
        return self._ids[: len(self._column)]

    @property
    def often(self) -> Tensor:
        return self._often[: len(self._column)]

    def set(self, token: int, often: int) -> None:
        column = self._column.setdefault(token, len(self._column))
        if column == len(self._ids):
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
            self._often = torch.cat([self._often, torch.zeros_like(self._often)])
        self._ids[column], self._often[column] = token, often


def is_greedy(params: SamplingParams) -> bool:
    """Whether the best token is always chosen."""
    return params.temperature < COLDEST or params.top_k == 1 or params.top_p <= 0


def is_path_dependent(params: SamplingParams) -> bool:
    """Whether the tokens before a position change its logits."""
    return (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    )


def warp(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    *,
    paths: Sequence[Sequence[int]] | None = None,
    banned: Sequence[Sequence[int]] | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Log-probabilities [R, V] the tokens are drawn with; excluded tokens have -inf.

    In this order: repetition penalty (prompt and answer), presence and frequency penalty (answer),
    logit bias, bans; temperature, min-p, top-k, top-p. `paths[r]` are the tokens between the last
    emitted one and row r, `banned[r]` the tokens row r must not choose, `allowed` [R, V] those it
    may. Tokens that tie with the last one kept by top-k or top-p are kept too, so that the set does
    not depend on a sort's order. float32, or float64 for such logits. Not for greedy parameters.
    """
    assert not is_greedy(params), "the best token needs no distribution"
    return _truncate(heat(penalize(logits, params, counts, paths, banned, allowed), params), params)


def penalize(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    paths: Sequence[Sequence[int]] | None = None,
    banned: Sequence[Sequence[int]] | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Logits [R, V] after penalties, logit bias and bans, in float32 or float64.

    They may be `logits` themselves where nothing changes: not to be written to.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    dependent, barred = is_path_dependent(params), any(map(len, banned or ()))
    if not (dependent or barred or params.logit_bias or allowed is not None):
        return logits.to(dtype)
    rows = logits.to(dtype, copy=True)
    if dependent:  # every penalty starts from the raw logit, so the last write is right
        assert counts is not None, "penalties need the sequence's counts"
        ids, often = counts.table()
        if params.repetition_penalty == 1:  # a prompt's tokens are as they were
            ids, often = ids[often > 0], often[often > 0]
        _penalize_tokens(rows, logits, ids, often, params)
        for row, path in enumerate(paths or ()):
            if along := counts.along(path):
                ids, often = torch.tensor([*along]), torch.tensor([*along.values()])
                _penalize_tokens(rows[row, None], logits[row, None], ids, often, params)
    if params.logit_bias:
        biased, bias = zip(*params.logit_bias, strict=True)
        rows[:, biased] += torch.tensor(bias, dtype=rows.dtype, device=rows.device)
    for row, tokens in enumerate(banned or ()) if barred else ():
        rows[row, list(tokens)] = -torch.inf
    if allowed is not None:
        rows.masked_fill_(~allowed.to(rows.device), -torch.inf)
    return rows


def _penalize_tokens(
    rows: Tensor, raw: Tensor, ids: Tensor, often: Tensor, params: SamplingParams
) -> None:
    """Write the penalized logits of these tokens, which occurred so often in the answer.

    Repetition: CTRL (arXiv 1909.05858, section 4.1), with negative logits multiplied as in every
    implementation since. Presence and frequency: as OpenAI's API defines them.
    """
    ids = ids.to(rows.device)
    counts = often.to(rows.device, rows.dtype)
    values = raw[:, ids].to(rows.dtype)
    penalty = params.repetition_penalty
    values = torch.where(values > 0, values / penalty, values * penalty)
    values -= params.frequency_penalty * counts
    values -= params.presence_penalty * (counts > 0).to(rows.dtype)
    rows[:, ids] = values


def heat(rows: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities [R, V] at the temperature."""
    if params.temperature != 1:
        rows = rows / params.temperature
    return rows.log_softmax(-1)


@dataclass(frozen=True)
class Kept:
    """Tokens that the truncation rules keep, of several rows: one entry each."""

    rows: Tensor  # int64
    tokens: Tensor  # int64
    log_probs: Tensor


def is_truncated(params: SamplingParams) -> bool:
    """Whether top-k, top-p or min-p leave tokens out."""
    return params.min_p > 0 or params.top_k > 0 or params.top_p < 1


def kept(log_probs: Tensor, params: SamplingParams) -> Kept:
    """What min-p, top-k and top-p leave of log-probabilities [R, whole blocks] from `heat`.

    The same tokens and log-probabilities as in `warp`, bit for bit, found in the best blocks of a
    row where the rules' floors lie above all of the others.
    """
    found: list[Kept] = []
    rows = torch.arange(len(log_probs), device=log_probs.device)
    for count in POOLS:
        if num_blocks(log_probs) < FEWER * count:
            pool = whole_pool(log_probs)
        else:
            pool = best_blocks(log_probs, best_of_blocks(log_probs), count)
        values, exact = _truncate_pool(pool, params, min(count, log_probs.shape[-1]))
        found.append(_kept_of(values.masked_fill_(~exact, -torch.inf), pool.ids, rows))
        if exact.all():
            break
        left = ~exact[:, 0]
        log_probs, rows = log_probs[left], rows[left]
    else:
        values = _truncate(log_probs, params)
        found.append(_kept_of(values, whole_pool(log_probs).ids, rows))
    if len(found) == 1:
        return found[0]
    return Kept(
        torch.cat([part.rows for part in found]),
        torch.cat([part.tokens for part in found]),
        torch.cat([part.log_probs for part in found]),
    )


def _kept_of(values: Tensor, ids: Tensor, rows: Tensor) -> Kept:
    row, column = values.isfinite().nonzero(as_tuple=True)
    return Kept(rows[row], ids[row, column], values[row, column])


def _truncate(log_probs: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities [R, V] after min-p, top-k and top-p."""
    if params.min_p > 0 or params.top_k > 0:
        log_probs = _above(log_probs, _counted_floor(log_probs, params))
    if params.top_p < 1:
        log_probs = _above(log_probs, _nucleus_floor(log_probs, params.top_p))
    return log_probs


def _truncate_pool(pool: Pool, params: SamplingParams, count: int) -> tuple[Tensor, Tensor]:
    """`_truncate` of rows of which the pool has the `count` best blocks.

    Second result, [R, 1] bool: whether every token that is kept was in the pool. Then these are
    the log-probabilities of whole rows: what is left out would have added zeros to their sums.
    """
    log_probs, exact = pool.values, torch.ones_like(pool.rest, dtype=torch.bool)
    counted = params.min_p > 0 or params.top_k > 0
    if counted:
        floor = _counted_floor(log_probs, params)
        exact = floor > pool.rest
        log_probs = _above(log_probs, floor)
    if params.top_p < 1:
        floor, mass = _floor_of_sorted(log_probs.topk(count).values, params.top_p)
        exact &= mass >= params.top_p
        if not counted:
            exact &= floor > pool.rest
        log_probs = _above(log_probs, floor)
    return log_probs, exact


def _above(log_probs: Tensor, floor: Tensor) -> Tensor:
    """Log-probabilities of what is at or above the floor [R, 1], with a sum of one."""
    return log_probs.masked_fill(log_probs < floor, -torch.inf).log_softmax(-1)


def _counted_floor(log_probs: Tensor, params: SamplingParams) -> Tensor:
    """The log-probability [R, 1] below which min-p or top-k leave a token out."""
    floor = torch.full_like(log_probs[:, :1], -torch.inf)
    if params.min_p > 0:
        lowest = torch.tensor(params.min_p, dtype=torch.float64).log().item()
        floor = log_probs.amax(-1, keepdim=True) + lowest
    if 0 < params.top_k < log_probs.shape[-1]:
        floor = torch.maximum(floor, log_probs.topk(params.top_k).values[:, -1:])
    return floor


def _nucleus_floor(log_probs: Tensor, top_p: float) -> Tensor:
    """The log-probability [R, 1] of the last token that top-p keeps.

    Nucleus sampling (arXiv 1904.09751, section 3.1): the smallest set of best tokens whose mass
    reaches `top_p`.
    """
    size = log_probs.shape[-1]
    best = log_probs.topk(min(NUCLEUS, size)).values
    floor, mass = _floor_of_sorted(best, top_p)
    for row in (mass[:, 0] < top_p).nonzero()[:, 0].tolist() if size > NUCLEUS else ():
        everything = log_probs[row].sort(descending=True).values[None]
        floor[row] = _floor_of_sorted(everything, top_p)[0][0]
    return floor


def _floor_of_sorted(values: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Where the mass of descending log-probabilities [R, K] reaches `top_p`; all their mass [R, 1].

    The floor [R, 1] is the last of them where it does not.
    """
    mass = values.double().exp().cumsum(-1)
    num_before = (mass < top_p).sum(-1, keepdim=True)
    return values.gather(-1, num_before.clamp(max=values.shape[-1] - 1)), mass[:, -1:]
