"""The draft model's guess of which tokens the target chooses, with the probability of each.

The target adds the same noise to its log-probabilities at the same position, so the token that is
best with the draft's log-probabilities is most likely best with the target's. A wrong guess costs
time but changes no output, so the guess may be approximate: few tokens of a row are examined, the
best one is missed in at most a share `MISSED` of rows, and the sum that normalizes a row is
estimated.

On a device that computes asynchronously the host would wait for each decision. There all tokens of
a row are examined, which takes a GPU no time that counts. In shapes V is the vocabulary size, R the
rows and K the examined tokens of a row.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.large_vocabularies.blocks import BLOCK, Rows, best_blocks
from engine.sampling.large_vocabularies.candidates import Candidates
from engine.sampling.large_vocabularies.rare_noise import find_rare
from engine.sampling.logit_rules import TokenCounts, is_greedy, penalize
from engine.sampling.noise import gumbel_from_uniform, make_streams, rounded_gumbel, uniform
from engine.sampling.truncation import (
    bounded_floor,
    has_min_p_or_top_k,
    is_truncated,
    min_p_top_k_floor,
    nucleus_floor,
)

CANDIDATES = (64, 1024)  # best tokens of a row that are examined; where its nucleus needs more
SELECTED = 64  # blocks in which a row's best tokens are searched
FEW = 4 * SELECTED  # a row of fewer blocks is examined as a whole
SUMMED = 8  # every 8th of the other blocks is summed to estimate a row's normalizer
ROUNDING = 1e-4  # difference of log-probabilities that were computed in two ways
MISSED = 0.003  # highest probability that a token not examined would have been a row's best


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
    at_once: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return the tokens the target most likely chooses, and their scores, [R, branch] each.

    The best tokens of each row come first. A score is the log-probability that the target chooses
    the token: `log_softmax((log-probabilities + noise of the position) / tau)`, without
    noise for greedy parameters. Rows that have fewer tokens are filled up with scores of -inf.

    Args:
        logits: the draft's logits [R, V].
        positions: the position in the sequence of each row's next token.
        choice: the number of the sequence among the choices of its request.
        tau: temperature of the scores; a lower one gives the best token a higher probability.
        branch: the most tokens of a row.
        paths, banned, allowed: those of `sampling_logprobs`.
        at_once: whether to examine whole rows, so that nothing makes the host wait.
    """
    rows = Rows.of(penalize(logits, params, counts, paths, banned, allowed))
    branch = min(branch, rows.size)
    if is_greedy(params):
        return _best_tokens(rows, branch, tau)
    streams = make_streams(params.seed, choice, positions, rows.best.device)
    if at_once:
        found = [
            _children_of_whole_rows(rows.only(part), params, streams[part], tau, branch)
            for part in rows.parts()
        ]
        return torch.cat([own for own, _ in found]), torch.cat([own for _, own in found])
    count = max(CANDIDATES[0], branch, min(params.top_k, CANDIDATES[-1]))
    tokens, scores = _children(rows, params, streams, tau, branch, count)
    return tokens, scores.to(rows.best.dtype)


def _best_tokens(rows: Rows, count: int, temperature: float) -> tuple[Tensor, Tensor]:
    """Return the `count` best tokens of logits, best first, and their log-probabilities, [R, K].

    The sum that normalizes a long row is exact for its best blocks and estimated from a part of the
    others.
    """
    if rows.num_blocks < FEW:
        whole = rows.whole()
        highest = whole.div_(temperature).log_softmax(-1).topk(min(count, whole.shape[-1]))
        return highest.indices, highest.values
    selection = best_blocks(rows, SELECTED)
    top = rows.best.amax(-1, keepdim=True)
    total = ((selection.values - top) / temperature).exp_().sum(-1, keepdim=True)
    total += _sum_of_others(rows, selection.rest, top, temperature)
    highest = selection.values.topk(min(count, selection.values.shape[-1]))
    log_probs = ((highest.values - top) / temperature).sub_(total.log_())
    return selection.ids.gather(-1, highest.indices), log_probs


def _sum_of_others(rows: Rows, rest: Tensor, top: Tensor, temperature: float) -> Tensor:
    """Estimate the sum [R, 1] of `exp((logit - top) / temperature)` outside of the best blocks.

    The selection of best blocks has taken those that differ most; `rest` is the best value left.
    """
    some = rows.every(SUMMED) - top[..., None]
    outside = (rows.best <= rest).to(some.dtype)
    sums = some.div_(temperature).exp_().sum(-1) * outside[:, ::SUMMED]
    share = outside[:, ::SUMMED].sum(-1, keepdim=True) / outside.sum(-1, keepdim=True)
    return sums.sum(-1, keepdim=True) / share.clamp_(min=1 / rows.size)


def _children(
    rows: Rows, params: SamplingParams, streams: Tensor, tau: float, branch: int, count: int
) -> tuple[Tensor, Tensor]:
    """Return the children of penalized rows and their scores, both [R, branch].

    The `count` best tokens of each row are examined. A row whose nucleus needs more is examined
    again with more tokens, and a row in which another token is likely enough to be the best, with
    all tokens whose noise is high enough.
    """
    ids, log_probs = _best_tokens(rows, count, params.temperature)
    log_probs, outside, is_short = _truncate(log_probs, params)
    noisy = gumbel_from_uniform(uniform(streams[:, None], ids)).add_(log_probs)
    tokens, scores = _ranked(ids, noisy, tau, branch)
    if not outside.any():
        return tokens, scores
    if count < CANDIDATES[-1]:
        outside = outside.masked_fill_(is_short, 0.0)
        if len(again := is_short[:, 0].nonzero()[:, 0]):
            more = _children(rows.only(again), params, streams[again], tau, branch, CANDIDATES[-1])
            tokens[again], scores[again] = more
    # The best noisy value of the other tokens is Gumbel noise around the logarithm of their mass.
    missed = outside * noisy.amax(-1, keepdim=True).neg_().exp_()
    wide = (missed > MISSED)[:, 0].nonzero()[:, 0]
    if len(wide):
        rare, least = _rare(
            rows.only(wide), params, streams[wide], log_probs[wide, :1], noisy[wide], branch
        )
        candidates = _join(rare, streams[wide], ids[wide], noisy[wide], least)
        tokens[wide], scores[wide] = _ranked(*candidates, tau, branch)
    return tokens, scores


def _children_of_whole_rows(
    rows: Rows, params: SamplingParams, streams: Tensor, tau: float, branch: int
) -> tuple[Tensor, Tensor]:
    """Return what `_children` returns, by examining all tokens.

    Where top-p keeps more than `MAX_NUCLEUS` tokens, none are left out.
    """
    values = rows.whole().sub_(rows.best.amax(-1, keepdim=True)).div_(params.temperature)
    if is_truncated(params):
        lowest, is_short = bounded_floor(values, params)
        if is_short is not None:
            lowest = torch.where(is_short, min_p_top_k_floor(values, params), lowest)
        values.masked_fill_(values < lowest, -torch.inf)
    # The constant that normalizes a row does not change the scores.
    noisy = rounded_gumbel(streams, values.shape[-1]).add_(values)
    best = noisy.div_(tau).log_softmax(-1).topk(branch)
    return best.indices, best.values


def _truncate(log_probs: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor, Tensor]:
    """Apply min-p, top-k and top-p to the best tokens of each row, log-probabilities [R, K].

    Return the truncated log-probabilities [R, K]; the mass [R, 1] of the tokens that are not among
    the best and might be drawn; and [R, 1], bool, the rows in which top-p keeps some of those.
    """
    if has_min_p_or_top_k(params):
        log_probs, outside = _truncate_by_count(log_probs, params)
        if params.top_p < 1:
            mass = log_probs.exp().cumsum(-1)
    else:
        mass = log_probs.exp().cumsum(-1)
        outside = (1 - mass[:, -1:]).clamp_(min=0)
    if params.top_p >= 1:
        return log_probs, outside, torch.zeros_like(outside, dtype=torch.bool)
    lowest, is_short = nucleus_floor(log_probs, mass, params.top_p)
    is_short.logical_and_(outside > 0)
    log_probs = log_probs.masked_fill(log_probs < lowest, -torch.inf)
    return log_probs, outside * is_short, is_short


def _truncate_by_count(log_probs: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Apply min-p and top-k alone.

    Return log-probabilities [R, K] and the mass of the other tokens [R, 1]. A row's probabilities
    and its mass add up to 1.
    """
    outside = (1 - log_probs.exp().sum(-1, keepdim=True)).clamp_(min=0)
    lowest = min_p_top_k_floor(log_probs, params, best=log_probs[:, :1], is_sorted=True)
    if 0 < params.top_k <= log_probs.shape[-1]:
        outside.zero_()
    outside.masked_fill_(lowest > log_probs[:, -1:], 0.0)
    log_probs = log_probs.masked_fill(log_probs < lowest, -torch.inf)
    total = log_probs.exp().sum(-1, keepdim=True).add_(outside)
    return log_probs - total.log(), outside / total


def _rare(
    rows: Rows, params: SamplingParams, streams: Tensor, best: Tensor, noisy: Tensor, branch: int
) -> tuple[Candidates, Tensor]:
    """Return the tokens that noise may lift among a row's `branch` best, and a bound [R, 1].

    The bound is the lowest noisy value of these tokens.

    Args:
        best: the log-probability of each row's best token, [R, 1].
        noisy: the noisy values of each row's best tokens, [R, K].
    """
    least = noisy.topk(branch).values[:, -1:] - ROUNDING
    # With all tokens as candidates e**-x of a row are above x on average.
    least.clamp_(min=-math.log(4 * branch + 8))
    of_blocks = rows.best / params.temperature
    shift = of_blocks.amax(-1, keepdim=True) - best
    row, token = find_rare(streams, rows.num_blocks * BLOCK, least - (of_blocks - shift))
    values = rows.at(row, token) / params.temperature - shift[row, 0]
    if params.min_p > 0:
        values = values.masked_fill_(values < best[row, 0] + math.log(params.min_p), -torch.inf)
    return Candidates(row, token, values), least


def _join(
    rare: Candidates, streams: Tensor, ids: Tensor, noisy: Tensor, least: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the candidates of all rows: ids and noisy values, both [R, C].

    They are the tokens of `rare` whose value is at least `least` [R, 1], and the tokens `ids`
    [R, K], with values `noisy`, that are below it. Values are -inf where a row has fewer.
    """
    counts = rare.rows.bincount(minlength=len(ids))
    column = torch.arange(len(rare.rows), device=ids.device)
    column -= (counts.cumsum(0) - counts)[rare.rows]
    values = rare.noisy(streams)
    values = values.where(values >= least[rare.rows, 0], -torch.inf)
    above = noisy.new_full((len(ids), int(counts.max())), -torch.inf)
    above[rare.rows, column] = values
    tokens = torch.zeros_like(above, dtype=torch.int64)
    tokens[rare.rows, column] = rare.tokens
    below = noisy.where(noisy < least, -torch.inf)
    return torch.cat([tokens, ids], -1), torch.cat([above, below], -1)


def _ranked(ids: Tensor, noisy: Tensor, tau: float, branch: int) -> tuple[Tensor, Tensor]:
    """Return the `branch` best of the candidates [R, C], and their scores among all of these."""
    best = (noisy / tau).log_softmax(-1).topk(branch)
    return ids.gather(-1, best.indices), best.values
