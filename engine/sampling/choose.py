"""How the next token is chosen from logits, and how drafted tokens are scored.

A choice is `argmax(warped log-probabilities + noise of its position)`, or plain argmax at
temperature 0. Its result depends on nothing else in the batch. V vocabulary, R rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.messages import SamplingParams, TokenLogprob
from engine.sampling.blocks import BLOCK, Rows, best_blocks, first_best
from engine.sampling.logit_rules import (
    TokenCounts,
    is_greedy,
    is_path_dependent,
    is_penalized,
    penalize,
    warp,
)
from engine.sampling.noise import gumbel_of, rare, streams_of, uniform
from engine.sampling.truncation import Hot, Kept, heat, is_truncated, kept

__all__ = [
    "TokenCounts",
    "choose",
    "choose_rows",
    "draft_children",
    "is_greedy",
    "is_path_dependent",
    "model_logprobs",
    "rows_logprobs",
    "warp",
]

LOWEST_LOGPROB = -9999.0  # told instead of minus infinity, which JSON cannot hold
PROBED = 8  # blocks whose noise is drawn first: their best bounds what the others need
CANDIDATES = (64, 1024)  # best tokens of a drafted row, and of one whose nucleus needs more
FEW = 4  # times the pool: a row of fewer blocks is looked through as a whole
POOL = 64  # blocks in which a drafted row's best tokens are looked for
SAMPLED = 8  # every so many blocks of the others are summed for a drafted row's normaliser
ROUNDING = 1e-4  # of log-probabilities that were computed in two ways
MISSED = 0.003  # chance that a token not looked at would have been a drafted row's best

_NO_TOKENS: tuple[int, ...] = ()


def choose(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    *,
    position: int,
    choice: int,
    path: Sequence[int] = _NO_TOKENS,
    banned: Sequence[int] = _NO_TOKENS,
    allowed: Tensor | None = None,
) -> int:
    """The token at an absolute position of choice `choice`, from the target's logits [V].

    Out of `allowed` [1, V], if given. The lowest id wins a tie.
    """
    chosen = choose_rows(
        Rows.of(logits[None]),
        params,
        counts,
        positions=[position],
        choice=choice,
        paths=[path],
        banned=[banned],
        allowed=allowed,
    )
    return int(chosen)


def choose_rows(
    logits: Rows,
    params: SamplingParams,
    counts: TokenCounts | None,
    *,
    positions: Sequence[int],
    choice: int,
    paths: Sequence[Sequence[int]] | None = None,
    banned: Sequence[Sequence[int]] | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """The tokens at absolute positions, one for each row of the target's logits.

    int64 [R], on the device of the logits: what `choose` gives for every row. `paths` matter only
    to parameters that are path-dependent.
    """
    if is_penalized(params, banned, allowed):
        raw = logits.whole()[:, : logits.size]
        logits = Rows.of(penalize(raw, params, counts, paths, banned, allowed))
    if is_greedy(params):
        return first_best(logits)
    streams = _streams(params, positions, choice, logits.best)
    hot = heat(logits, params)
    found = kept(hot, params) if is_truncated(params) else _within_reach(hot, streams)
    return _winners(len(logits), found, _noisy(found, streams))


def draft_children(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    *,
    positions: Sequence[int],
    choice: int,
    tau: float,
    branch: int,
    paths: Sequence[Sequence[int]] | None = None,
    banned: Sequence[Sequence[int]] | None = None,
    allowed: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The tokens the target most likely chooses, guessed from the draft's logits [R, V].

    The `branch` best tokens of each row, int64, and their scores: both [R, branch], best first. A
    score is the log-probability that the target chooses the token,
    `log_softmax((warped log-probabilities + noise of the position) / tau)`: the target meets the
    same noise, so the draft's winner is most likely the target's; tau says how sure that is.
    Greedy parameters have no noise. Scores of -inf fill up rows that have fewer candidates.

    A guess may be cheap: few tokens of a row are looked at, so that the best one is missed in a
    share of at most `MISSED` of rows, and their normaliser is estimated.
    """
    rows = Rows.of(penalize(logits, params, counts, paths, banned, allowed))
    branch = min(branch, rows.size)
    if is_greedy(params):
        best = _best(rows, branch, tau)
        return best.ids, best.log_probs
    streams = _streams(params, positions, choice, rows.best)
    count = max(CANDIDATES[0], branch, min(params.top_k, CANDIDATES[-1]))
    tokens, scores = _draft(rows, params, streams, tau, branch, count)
    return tokens, scores.to(rows.best.dtype)


def model_logprobs(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """The model's own log-probability of a token and its `top` best, from logits [V].

    What `rows_logprobs` gives for every row.
    """
    return rows_logprobs(logits[None], [token], top)[0]


def rows_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Of each row's token and of the row's `top` best ones, from the model's logits [R, V].

    Before temperature and penalties, never below -9999.0; the lower id goes first in a tie.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits.to(dtype).log_softmax(-1).clamp_(min=LOWEST_LOGPROB)
    own = log_probs[range(len(tokens)), tokens].tolist()
    best: list[list[tuple[int, float]]] = [[] for _ in tokens]
    if top > 0:
        last = log_probs.topk(min(top, log_probs.shape[-1])).values[:, -1:]
        rows, ids = (log_probs >= last).nonzero(as_tuple=True)
        values = log_probs[rows, ids]
        for row, other, value in zip(rows.tolist(), ids.tolist(), values.tolist(), strict=True):
            best[row].append((other, value))
    return [
        TokenLogprob(token, logprob, tuple(sorted(found, key=_best_first)[:top]))
        for token, logprob, found in zip(tokens, own, best, strict=True)
    ]


def _best_first(pair: tuple[int, float]) -> tuple[float, int]:
    return -pair[1], pair[0]


def _streams(params: SamplingParams, positions: Sequence[int], choice: int, rows: Tensor) -> Tensor:
    return streams_of(params.seed, choice, positions, rows.device)


def _noisy(found: Kept, streams: Tensor) -> Tensor:
    """The values plus the noise of each row's position: float64."""
    return gumbel_of(uniform(streams[found.rows], found.tokens)).add_(found.values)


def _within_reach(hot: Hot, streams: Tensor) -> Kept:
    """The tokens of each row that the noise may lift to its best."""
    pool = hot.pool(PROBED)
    noisy = gumbel_of(uniform(streams[:, None], pool.ids)).add_(pool.values)
    needed = noisy.amax(-1, keepdim=True) - hot.best
    rows, tokens = rare(streams, hot.logits.num_blocks * BLOCK, needed)
    return Kept(rows, tokens, hot.at(rows, tokens))


def _winners(num_rows: int, found: Kept, noisy: Tensor) -> Tensor:
    """Each row's best token [num_rows]; the lowest id wins a tie, 0 where there is none.

    A row's tokens are in ascending order.
    """
    if num_rows == 1 and len(noisy):
        return found.tokens[noisy.argmax(keepdim=True)]
    best = noisy.new_full((num_rows,), -torch.inf).scatter_reduce_(0, found.rows, noisy, "amax")
    won = noisy == best[found.rows]
    nobody = torch.iinfo(torch.int64).max
    winner = found.tokens.new_full((num_rows,), nobody)
    winner.scatter_reduce_(0, found.rows[won], found.tokens[won], "amin")
    return winner.masked_fill_(winner == nobody, 0)


@dataclass(frozen=True)
class _Best:
    """The best tokens of each row, best first."""

    ids: Tensor  # [R, K] int64
    log_probs: Tensor  # [R, K], of all the row


def _best(rows: Rows, count: int, temperature: float) -> _Best:
    """The `count` best tokens of logits and their log-probabilities.

    The sum of a long row is exact for its best blocks and estimated from a part of the others.
    """
    if rows.num_blocks < FEW * POOL:
        whole = rows.whole()
        highest = whole.div_(temperature).log_softmax(-1).topk(min(count, whole.shape[-1]))
        return _Best(highest.indices, highest.values)
    pool = best_blocks(rows, POOL)
    top = rows.best.amax(-1, keepdim=True)
    total = ((pool.values - top) / temperature).exp_().sum(-1, keepdim=True)
    total += _sum_of_others(rows, pool.rest, top, temperature)
    highest = pool.values.topk(min(count, pool.values.shape[-1]))
    log_probs = ((highest.values - top) / temperature).sub_(total.log_())
    return _Best(pool.ids.gather(-1, highest.indices), log_probs)


def _sum_of_others(rows: Rows, rest: Tensor, top: Tensor, temperature: float) -> Tensor:
    """An estimate [R, 1] of the sum of `exp((logit - top) / temperature)` outside of the pool.

    Every `SAMPLED`-th block is summed. The pool has taken the blocks that differ most.
    """
    some = rows.every(SAMPLED) - top[..., None]
    outside = (rows.best <= rest).to(some.dtype)
    sums = some.div_(temperature).exp_().sum(-1) * outside[:, ::SAMPLED]
    share = outside[:, ::SAMPLED].sum(-1, keepdim=True) / outside.sum(-1, keepdim=True)
    return sums.sum(-1, keepdim=True) / share.clamp_(min=1 / rows.size)


def _draft(
    rows: Rows, params: SamplingParams, streams: Tensor, tau: float, branch: int, count: int
) -> tuple[Tensor, Tensor]:
    """The children of penalized rows by their `count` best tokens.

    Tokens and scores [R, branch]. Rows whose nucleus is larger take more tokens; rows where a
    token behind the best may win take all that the noise may lift.
    """
    best = _best(rows, count, params.temperature)
    log_probs, outside, short = _truncate_best(best.log_probs, params)
    noisy = gumbel_of(uniform(streams[:, None], best.ids)).add_(log_probs)
    tokens, scores = _ranked(best.ids, noisy, tau, branch)
    if not outside.any():
        return tokens, scores
    if count < CANDIDATES[-1]:
        outside = outside.masked_fill_(short, 0.0)
        if len(again := short[:, 0].nonzero()[:, 0]):
            more = _draft(rows.only(again), params, streams[again], tau, branch, CANDIDATES[-1])
            tokens[again], scores[again] = more
    # The best noisy value outside is Gumbel noise around the logarithm of the mass there.
    missed = outside * noisy.amax(-1, keepdim=True).neg_().exp_()
    wide = (missed > MISSED)[:, 0].nonzero()[:, 0]
    if len(wide):
        least = noisy[wide].topk(branch).values[:, -1:] - ROUNDING
        # With all tokens as candidates e**-x of a row are above x on average.
        least.clamp_(min=-math.log(4 * branch + 8))
        of_blocks = rows.best[wide] / params.temperature
        top = of_blocks.amax(-1, keepdim=True)
        shift = top - log_probs[wide, :1]
        needed = least - (of_blocks - shift)
        row, token = rare(streams[wide], rows.num_blocks * BLOCK, needed)
        values = rows.at(wide[row], token) / params.temperature - shift[row, 0]
        if params.min_p > 0:
            floor = log_probs[wide, 0] + math.log(params.min_p)
            values = values.masked_fill_(values < floor[row], -torch.inf)
        lifted = Kept(row, token, values)
        candidates = _join(lifted, streams[wide], best.ids[wide], noisy[wide], least)
        tokens[wide], scores[wide] = _ranked(*candidates, tau, branch)
    return tokens, scores


def _truncate_best(log_probs: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor, Tensor]:
    """Min-p, top-k and top-p on the best tokens of each row, log-probabilities [R, K].

    Also, both [R, 1]: the mass of the tokens behind them, 0 if the rules leave all of them out;
    and whether top-p would keep some of those. The sum is one only where it would.
    """
    if params.min_p > 0 or params.top_k > 0:
        log_probs, outside = _count_best(log_probs, params)
        probabilities = log_probs.exp()
        mass = probabilities.cumsum(-1)
    else:
        probabilities = log_probs.exp()
        mass = probabilities.cumsum(-1)
        outside = (1 - mass[:, -1:]).clamp_(min=0)
    if params.top_p >= 1:
        return log_probs, outside, torch.zeros_like(outside, dtype=torch.bool)
    short = (mass[:, -1:] < params.top_p).logical_and_(outside > 0)
    log_probs = log_probs.masked_fill((mass - probabilities) >= params.top_p, -torch.inf)
    return log_probs, outside * short, short


def _count_best(log_probs: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Min-p and top-k alone: log-probabilities [R, K] and the mass outside [R, 1], one in all."""
    outside = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp_(min=0)
    floor = torch.full_like(outside, -torch.inf)
    if params.min_p > 0:
        floor = log_probs[:, :1] + math.log(params.min_p)
    if 0 < params.top_k <= log_probs.shape[-1]:
        floor = torch.maximum(floor, log_probs[:, params.top_k - 1, None])
        outside.zero_()
    outside.masked_fill_(floor > log_probs[:, -1:], 0.0)
    log_probs = log_probs.masked_fill(log_probs < floor, -torch.inf)
    total = log_probs.exp().sum(-1, keepdim=True).add_(outside)
    return log_probs - total.log(), outside / total


def _join(
    lifted: Kept, streams: Tensor, ids: Tensor, noisy: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Candidates of rows [R, C], ids and noisy values, -inf where there is none.

    Those of `lifted` above `least` [R, 1], and those of `ids`, of values `noisy` [R, K], below it.
    """
    counts = lifted.rows.bincount(minlength=len(ids))
    column = torch.arange(len(lifted.rows), device=ids.device)
    column -= (counts.cumsum(0) - counts)[lifted.rows]
    values = _noisy(lifted, streams)
    values = values.where(values >= least[lifted.rows, 0], -torch.inf)
    above = noisy.new_full((len(ids), int(counts.max())), -torch.inf)
    above[lifted.rows, column] = values
    tokens = torch.zeros_like(above, dtype=torch.int64)
    tokens[lifted.rows, column] = lifted.tokens
    below = noisy.where(noisy < least, -torch.inf)
    return torch.cat([tokens, ids], -1), torch.cat([above, below], -1)


def _ranked(ids: Tensor, noisy: Tensor, tau: float, branch: int) -> tuple[Tensor, Tensor]:
    """The best `branch` of candidates [R, C] and their scores among all of them."""
    best = (noisy / tau).log_softmax(-1).topk(branch)
    return ids.gather(-1, best.indices), best.values
