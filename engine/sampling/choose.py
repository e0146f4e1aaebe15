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

In shapes, V is the vocabulary size and R the number of rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.large_vocabularies.blocks import Rows, argmax_of_rows
from engine.sampling.large_vocabularies.candidates import Candidates, find_candidates
from engine.sampling.logit_rules import TokenCounts, is_greedy, is_penalized, penalize
from engine.sampling.noise import make_streams

NO_CHOICE = -1


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
