"""The target's exact choice of the next token.

    token = argmax(warp(logits) + noise(seed, choice, position))

`warp` (`logit_rules.py`) turns logits into the log-probabilities that tokens are drawn with. Adding
Gumbel noise (`noise.py`) makes the best token a sample of them. The noise is a function of seed,
choice, position and token, so a choice depends on nothing else in the batch. At temperature 0 there
is no noise.

At a vocabulary of 150,000 tokens, computing that line as it stands takes the host longer than all
its other work. `find_candidates` (`large_vocabularies/candidates.py`) leaves out the tokens that
cannot win: those that the rules cut, and those that no noise at hand lifts above a sum already
seen. It also leaves out the constant of each row that turns values into log-probabilities, which
moves no argmax. So the tokens are the same. V vocabulary, R rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.large_vocabularies.blocks import Rows, first_best
from engine.sampling.large_vocabularies.candidates import Candidates, find_candidates
from engine.sampling.logit_rules import TokenCounts, is_greedy, is_penalized, penalize
from engine.sampling.noise import streams_of


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
    """Return the token at each of these absolute positions, int64 [R], on the logits' device.

    There is one row of the target's logits for each position; the lowest id wins a tie. `paths`,
    `banned` and `allowed` are those of `warp`; `paths` matter only to path-dependent parameters.
    """
    if is_penalized(params, banned, allowed):
        raw = logits.whole()[:, : logits.size]
        logits = Rows.of(penalize(raw, params, counts, paths, banned, allowed))
    if is_greedy(params):
        return first_best(logits)
    streams = streams_of(params.seed, choice, positions, logits.best.device)
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
    """Return what `choose_rows` gives for one row of logits [V]; `allowed` is [1, V]."""
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
    """Return the token [num_rows] with the best noisy value; 0 for a row without candidates."""
    if num_rows == 1 and len(noisy):
        return candidates.tokens[noisy.argmax(keepdim=True)]
    best = noisy.new_full((num_rows,), -torch.inf)
    best.scatter_reduce_(0, candidates.rows, noisy, "amax")
    is_best = noisy == best[candidates.rows]
    none = torch.iinfo(torch.int64).max
    tokens = candidates.tokens.new_full((num_rows,), none)
    tokens.scatter_reduce_(0, candidates.rows[is_best], candidates.tokens[is_best], "amin")
    return tokens.masked_fill_(tokens == none, 0)
