"""How the next token is chosen from logits, and how drafted tokens are scored.

A choice is `argmax(warped log-probabilities + noise of its position)`, or plain argmax at
temperature 0. `choose` works on a copy of one row, so its result depends on nothing else in the
batch. V vocabulary, R rows.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from engine.messages import SamplingParams, TokenLogprob
from engine.noise import GUMBEL_MAX, gumbel_of, stream, uniform

LOWEST_LOGPROB = -9999.0  # told instead of minus infinity, which JSON cannot hold
COLDEST = 1e-5  # a temperature below this is 0: logits divided by it would overflow
NUCLEUS = 1024  # top-p looks at so many tokens before it sorts all of them
NEGLIGIBLE = 30.0  # nats below the best: e**-30 of it, nothing beside float32's rounding
BLOCK = 2**20  # noise values drawn at once: bounds the memory of many rows

_NO_TOKENS: tuple[int, ...] = ()


class TokenCounts:
    """Which tokens a sequence holds, for the penalties: its prompt's, and how often its answer's.

    Kept sparse: a vocabulary-sized count per sequence would cost more than the tokens themselves.
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        self._prompt = frozenset(prompt)
        self._output: dict[int, int] = {}

    def add(self, token: int) -> None:
        """Count one emitted token."""
        self._output[token] = self._output.get(token, 0) + 1

    @property
    def prompt(self) -> list[int]:
        """The prompt's tokens, each once."""
        return list(self._prompt)

    @property
    def output(self) -> dict[int, int]:
        """Emitted token -> how often."""
        return dict(self._output)

    def along(self, path: Sequence[int]) -> dict[int, int]:
        """Token of `path` -> how often it occurs in the answer followed by the path."""
        counts: dict[int, int] = {}
        for token in path:
            counts[token] = counts.get(token, self._output.get(token, 0)) + 1
        return counts


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
) -> Tensor:
    """Log-probabilities [R, V] the tokens are drawn with; excluded tokens have -inf.

    In this order: repetition penalty (prompt and answer), presence and frequency penalty (answer),
    logit bias, bans; temperature, min-p, top-k, top-p. `paths[r]` are the tokens between the last
    emitted one and row r, `banned[r]` the tokens row r must not choose. Tokens that tie with the
    last one kept by top-k or top-p are kept too, so that the set does not depend on a sort's order.
    float32, or float64 for such logits. Not for greedy parameters.
    """
    assert not is_greedy(params), "the best token needs no distribution"
    return _truncate(_penalize(logits, params, counts, paths, banned), params)


def choose(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    *,
    position: int,
    choice: int,
    path: Sequence[int] = _NO_TOKENS,
    banned: Sequence[int] = _NO_TOKENS,
) -> int:
    """The token at an absolute position of choice `choice`, from the target's logits [V].

    The lowest id wins a tie.
    """
    row = _penalize(logits[None], params, counts, [path], [banned])
    if is_greedy(params):
        return int(row.argmax())
    return int(_noisy(_truncate(row, params), params.seed, choice, [position], 0.0).argmax())


def draft_scores(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    *,
    positions: Sequence[int],
    choice: int,
    tau: float,
    paths: Sequence[Sequence[int]] | None = None,
    banned: Sequence[Sequence[int]] | None = None,
) -> Tensor:
    """Log-probabilities [R, V] that the target chooses a token, guessed from the draft's logits.

    `log_softmax((warped log-probabilities + noise of the position) / tau)`: the target meets the
    same noise, so the draft's winner is most likely the target's; tau says how sure that is.
    Tokens `NEGLIGIBLE` nats below the best may have -inf. Greedy parameters have no noise.
    """
    rows = _penalize(logits, params, counts, paths, banned)
    if is_greedy(params):
        return (rows / tau).log_softmax(-1)
    log_probs = _truncate(rows, params)
    noisy = _noisy(log_probs, params.seed, choice, positions, NEGLIGIBLE * tau)
    return (noisy / tau).to(log_probs.dtype).log_softmax(-1)


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
) -> tuple[Tensor, Tensor]:
    """The `branch` best tokens of each row and their `draft_scores`: both [R, branch], best first.

    Scores of -inf fill up rows that have fewer candidates.
    """
    scores = draft_scores(
        logits,
        params,
        counts,
        positions=positions,
        choice=choice,
        tau=tau,
        paths=paths,
        banned=banned,
    )
    best = scores.topk(min(branch, scores.shape[-1]), dim=-1)
    return best.indices, best.values


def model_logprobs(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """The model's own log-probability of a token and its `top` best, from logits [V].

    Before temperature and penalties, never below -9999.0; the lower id goes first in a tie.
    """
    log_probs = _at_least_float32(logits).log_softmax(-1)
    best: list[tuple[int, float]] = []
    if top > 0:
        last = log_probs.topk(min(top, len(log_probs))).values[-1]
        ids = (log_probs >= last).nonzero()[:, 0]
        pairs = zip(ids.tolist(), log_probs[ids].tolist(), strict=True)
        best = sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:top]
    return TokenLogprob(
        token=token,
        logprob=max(float(log_probs[token]), LOWEST_LOGPROB),
        top=tuple((other, max(value, LOWEST_LOGPROB)) for other, value in best),
    )


def _penalize(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    paths: Sequence[Sequence[int]] | None,
    banned: Sequence[Sequence[int]] | None,
) -> Tensor:
    """A copy of logits [R, V] after penalties, logit bias and bans."""
    rows = _at_least_float32(logits)
    if is_path_dependent(params):
        assert counts is not None, "penalties need the sequence's counts"
        raw = rows.clone()  # every penalty starts from the raw logit, so the last write is right
        if params.repetition_penalty != 1:
            _penalize_tokens(rows, raw, dict.fromkeys(counts.prompt, 0), params)
        _penalize_tokens(rows, raw, counts.output, params)
        for row, path in enumerate(paths or ()):
            _penalize_tokens(rows[row, None], raw[row, None], counts.along(path), params)
    if params.logit_bias:
        ids, bias = zip(*params.logit_bias, strict=True)
        rows[:, ids] += torch.tensor(bias, dtype=rows.dtype, device=rows.device)
    for row, tokens in enumerate(banned or ()):
        if tokens:
            rows[row, list(tokens)] = -torch.inf
    return rows


def _penalize_tokens(
    rows: Tensor, raw: Tensor, counts: dict[int, int], params: SamplingParams
) -> None:
    """Write the penalized logits of these tokens, which occurred so often in the answer.

    Repetition: CTRL (arXiv 1909.05858, section 4.1), with negative logits multiplied as in every
    implementation since. Presence and frequency: as OpenAI's API defines them.
    """
    if not counts:
        return
    ids = torch.tensor(list(counts), device=rows.device)
    often = torch.tensor(list(counts.values()), dtype=rows.dtype, device=rows.device)
    values = raw[:, ids]
    penalty = params.repetition_penalty
    values = torch.where(values > 0, values / penalty, values * penalty)
    values -= params.frequency_penalty * often
    values -= params.presence_penalty * (often > 0).to(rows.dtype)
    rows[:, ids] = values


def _truncate(rows: Tensor, params: SamplingParams) -> Tensor:
    """Log-probabilities [R, V] after temperature, min-p, top-k and top-p."""
    log_probs = (rows / params.temperature).log_softmax(-1)
    # Each rule keeps the tokens at or above some log-probability, so the rules are floors.
    floor = torch.full_like(log_probs[:, :1], -torch.inf)
    if params.min_p > 0:
        lowest = torch.tensor(params.min_p, dtype=torch.float64).log().item()
        floor = log_probs.amax(-1, keepdim=True) + lowest
    if 0 < params.top_k < rows.shape[-1]:
        floor = torch.maximum(floor, log_probs.topk(params.top_k).values[:, -1:])
    if params.min_p > 0 or params.top_k > 0:
        log_probs = log_probs.masked_fill_(log_probs < floor, -torch.inf).log_softmax(-1)
    if params.top_p < 1:
        floor = _nucleus_floor(log_probs, params.top_p)
        log_probs = log_probs.masked_fill_(log_probs < floor, -torch.inf).log_softmax(-1)
    return log_probs


def _nucleus_floor(log_probs: Tensor, top_p: float) -> Tensor:
    """The log-probability [R, 1] of the last token that top-p keeps.

    Nucleus sampling (arXiv 1904.09751, section 3.1): the smallest set of best tokens whose mass
    reaches `top_p`.
    """
    size = log_probs.shape[-1]
    best = log_probs.topk(min(NUCLEUS, size)).values
    floor, mass = _floor_of_sorted(best, top_p)
    for row in (mass < top_p).nonzero()[:, 0].tolist() if size > NUCLEUS else ():
        everything = log_probs[row].sort(descending=True).values[None]
        floor[row] = _floor_of_sorted(everything, top_p)[0][0]
    return floor


def _floor_of_sorted(values: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Where the mass of descending log-probabilities [R, K] reaches `top_p`; all their mass [R].

    The floor [R, 1] is the last of them where it does not.
    """
    mass = values.double().exp().cumsum(-1)
    num_before = (mass < top_p).sum(-1, keepdim=True)
    return values.gather(-1, num_before.clamp(max=values.shape[-1] - 1)), mass[:, -1]


def _noisy(
    log_probs: Tensor, seed: int, choice: int, positions: Sequence[int], margin: float
) -> Tensor:
    """`log_probs` [R, V] plus the noise of each row's position: float64.

    Values more than `margin` below the best of their row may be -inf: their noise need not be
    drawn. Nothing else is left out, since the noise has a largest value.
    """
    streams = stream(seed, choice, torch.tensor(positions, device=log_probs.device))
    step = max(1, BLOCK // log_probs.shape[-1])
    blocks = [slice(first, first + step) for first in range(0, len(log_probs), step)]
    return torch.cat([_noisy_block(log_probs[rows], streams[rows], margin) for rows in blocks])


def _noisy_block(log_probs: Tensor, streams: Tensor, margin: float) -> Tensor:
    """`_noisy` for rows [R, V] whose noise streams [R] are known."""
    likeliest, token = log_probs.max(-1)
    best = likeliest.double() + gumbel_of(uniform(streams, token))  # or a better one
    reachable = (best - margin - GUMBEL_MAX).to(log_probs.dtype) - 0.01  # for the rounding
    near = log_probs >= reachable[:, None]
    if near.sum() > near.numel() // 4:  # gathering would cost more than it saves
        everything = torch.arange(log_probs.shape[-1], device=log_probs.device)
        return gumbel_of(uniform(streams[:, None], everything)).add_(log_probs)
    rows, tokens = near.nonzero(as_tuple=True)
    values = torch.full_like(log_probs, -torch.inf, dtype=torch.float64)
    values[rows, tokens] = log_probs[rows, tokens] + gumbel_of(uniform(streams[rows], tokens))
    return values


def _at_least_float32(logits: Tensor) -> Tensor:
    """A copy in float32, or in float64 if it is that already."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
