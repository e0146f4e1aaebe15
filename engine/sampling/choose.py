"""The target's exact choice of the next token.

    token = argmax(sampling_logprobs(logits) + noise(seed, choice, position))

`sampling_logprobs` (`logit_rules.py`) turns logits into the log-probabilities that tokens are drawn
with. With Gumbel noise added (`noise.py`), the argmax is a sample of that distribution. The noise
is a function of seed, choice, position and token, so a chosen token does not depend on the other
rows of the batch. At temperature 0 there is no noise.

With a vocabulary of 150,000 tokens, computing this formula directly takes more host time than
everything else. `find_candidates` (`large_vocabularies/candidates.py`) leaves out tokens that
cannot be the argmax: those that truncation removes, and those whose noise is too small to exceed a
sum that is already known. It also leaves out the normalizing constant of each row, which does not
change the argmax. So the result equals that of the formula.

A device that computes asynchronously should not be asked how many candidates there are: the host
would wait for each answer. `choose_rows_at_once` computes on whole rows there, with shapes that the
host knows, and leaves out the few rows that need a decision.

In shapes, V is the vocabulary size and R the number of rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.large_vocabularies.blocks import Rows, argmax_of_rows
from engine.sampling.large_vocabularies.candidates import Candidates, find_candidates
from engine.sampling.logit_rules import TokenCounts, is_greedy, is_penalized, penalize
from engine.sampling.noise import gumbel_from_uniform, make_streams, rounded_gumbel, uniform
from engine.sampling.truncation import bounded_floor, is_truncated

NO_CHOICE = -1
UNDECIDED = -2  # of a row for which `choose_rows` has to be called
# Tokens of a row that are compared exactly. Sums of a logit and noise in float32 are off by less
# than 1e-4, and that nine tokens are so near to a row's best has a probability below 1e-30.
FINALISTS = 8


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
    """Return the chosen token of each row, int64 [R], on the device of the logits.

    If several tokens are equally good, the one with the lowest id is chosen. A row with a logit
    that is NaN or infinite has no choice: its token is `NO_CHOICE`.

    Args:
        logits: the target's logits, one row for each position.
        counts: the token counts of the sequence; needed only for penalties.
        positions: the absolute position of each row's token in the sequence.
        choice: the number of the sequence among its request's choices.
        paths, banned, allowed: as for `sampling_logprobs`; `paths` are needed only for penalties.
    """
    has_choice = logits.best.amax(-1) < torch.inf  # False for NaN
    return _choose_rows(
        logits, params, counts, positions, choice, paths, banned, allowed
    ).masked_fill(~has_choice, NO_CHOICE)


def _choose_rows(
    logits: Rows,
    params: SamplingParams,
    counts: TokenCounts | None,
    positions: Sequence[int],
    choice: int,
    paths: Sequence[Sequence[int]] | None,
    banned: Sequence[Sequence[int]] | None,
    allowed: Tensor | None,
) -> Tensor:
    if is_penalized(params, banned, allowed):
        raw = logits.whole()[:, : logits.size]
        logits = Rows.of(penalize(raw, params, counts, paths, banned, allowed))
    if is_greedy(params):
        return argmax_of_rows(logits)
    streams = make_streams(params.seed, choice, positions, logits.best.device)
    candidates = find_candidates(logits, params, streams)
    return _best_of_each_row(candidates, candidates.noisy(streams), len(logits))


def choose_rows_at_once(
    logits: Rows,
    params: SamplingParams,
    *,
    positions: Sequence[int],
    choice: int,
    banned: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Return what `choose_rows` returns, without making the host wait for the device.

    The token is `UNDECIDED` in rows where top-p keeps more than `MAX_NUCLEUS` tokens. Rules that
    depend on the tokens before a row, and grammars, are not supported. For the arguments see
    `choose_rows`.
    """
    has_choice = logits.best.amax(-1) < torch.inf  # False for NaN
    if is_penalized(params, banned, None):
        raw = logits.whole()[:, : logits.size]
        logits = Rows.of(penalize(raw, params, None, None, banned))
    if is_greedy(params):
        return argmax_of_rows(logits).masked_fill(~has_choice, NO_CHOICE)
    streams = make_streams(params.seed, choice, positions, logits.best.device)
    chosen = [
        _choose_of_whole_rows(logits.only(part), params, streams[part]) for part in logits.parts()
    ]
    return torch.cat(chosen).masked_fill(~has_choice, NO_CHOICE)


def _choose_of_whole_rows(logits: Rows, params: SamplingParams, streams: Tensor) -> Tensor:
    """Return the tokens [R] of rows by sampling, or `UNDECIDED`."""
    values = logits.whole().sub_(logits.best.amax(-1, keepdim=True)).div_(params.temperature)
    is_short = None
    if is_truncated(params):
        lowest, is_short = bounded_floor(values, params)
        values.masked_fill_(values < lowest, -torch.inf)
    count = min(FINALISTS, values.shape[-1])
    tokens = (rounded_gumbel(streams, values.shape[-1]) + values).topk(count).indices
    tokens = tokens.sort(-1).values  # of equally good ones the first is chosen
    noise = gumbel_from_uniform(uniform(streams[:, None], tokens))
    noisy = noise.add_(values.gather(-1, tokens))
    best, place = noisy.max(-1, keepdim=True)
    # A row without any candidate has token 0.
    chosen = tokens.gather(-1, place).masked_fill_(~(best > -torch.inf), 0)[:, 0]
    return chosen if is_short is None else chosen.masked_fill(is_short[:, 0], UNDECIDED)


def choose(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    *,
    position: int,
    choice: int,
    path: Sequence[int] = (),
    banned: Sequence[int] = (),
    allowed: Tensor | None = None,
) -> int:
    """Return the choice of `choose_rows` for one row of logits [V]; `allowed` is [1, V]."""
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


def _best_of_each_row(candidates: Candidates, noisy: Tensor, num_rows: int) -> Tensor:
    """Return each row's candidate with the best noisy value, [num_rows]; 0 if there is none."""
    if num_rows == 1 and len(noisy):
        return candidates.tokens[noisy.argmax(keepdim=True)]
    best = noisy.new_full((num_rows,), -torch.inf)
    best.scatter_reduce_(0, candidates.rows, noisy, "amax")
    is_best = noisy == best[candidates.rows]
    none = torch.iinfo(torch.int64).max
    tokens = candidates.tokens.new_full((num_rows,), none)
    tokens.scatter_reduce_(0, candidates.rows[is_best], candidates.tokens[is_best], "amin")
    return tokens.masked_fill_(tokens == none, 0)
