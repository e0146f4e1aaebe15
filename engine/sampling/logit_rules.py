"""The distribution that tokens are drawn from: penalties, bias, bans, temperature, truncation.

`warp` is the definition of that distribution. V vocabulary, R rows.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.large_vocabularies.blocks import whole_blocks
from engine.sampling.truncation import floor, is_truncated

COLDEST = 1e-5  # a temperature below this is 0: logits divided by it would overflow

_ROOM = 256  # columns that a table has free at first


class TokenCounts:
    """The tokens of a sequence as the penalties count them: its prompt, and its answer so far.

    Kept sparse: a vocabulary-sized count per sequence would cost more than the tokens themselves.
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        self._prompt = frozenset(prompt)
        self._output: dict[int, int] = {}
        self._table: _Table | None = None  # made on first use: most requests have no penalties

    def add(self, token: int) -> None:
        """Count one emitted token."""
        often = self._output[token] = self._output.get(token, 0) + 1
        if self._table is not None:
            self._table.set(token, often)

    def table(self) -> tuple[Tensor, Tensor]:
        """Return the distinct tokens, int64, and how often each occurs in the answer."""
        if self._table is None:
            self._table = _Table(dict.fromkeys(self._prompt, 0) | self._output)
        return self._table.columns()

    def along(self, path: Sequence[int]) -> dict[int, int]:
        """Return how often each token of `path` occurs in the answer followed by the path."""
        counts: dict[int, int] = {}
        for token in path:
            counts[token] = counts.get(token, self._output.get(token, 0)) + 1
        return counts


class _Table:
    """Token counts as tensors, one column for each token, with room to grow."""

    def __init__(self, counts: dict[int, int]) -> None:
        self._column = {token: column for column, token in enumerate(counts)}
        self._ids = torch.tensor([*counts, *[0] * _ROOM])
        self._often = torch.tensor([*counts.values(), *[0] * _ROOM])

    def columns(self) -> tuple[Tensor, Tensor]:
        return self._ids[: len(self._column)], self._often[: len(self._column)]

    def set(self, token: int, often: int) -> None:
        column = self._column.setdefault(token, len(self._column))
        if column == len(self._ids):
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
            self._often = torch.cat([self._often, torch.zeros_like(self._often)])
        self._ids[column], self._often[column] = token, often


def is_greedy(params: SamplingParams) -> bool:
    """Return True if the best token is always chosen."""
    return params.temperature < COLDEST or params.top_k == 1 or params.top_p <= 0


def is_path_dependent(params: SamplingParams) -> bool:
    """Return True if the tokens before a position change its logits."""
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
    """Return the log-probabilities [R, V] that tokens are drawn with; excluded tokens have -inf.

    The rules apply in this order: repetition penalty (prompt and answer), presence and frequency
    penalty (answer), logit bias, bans; temperature, min-p, top-k, top-p. The result is float32, or
    float64 for such logits. Greedy parameters have no distribution.

    Args:
        paths: for each row, the tokens between the last emitted one and the row.
        banned: for each row, the tokens that must not be chosen.
        allowed: the tokens that may be chosen, [R, V] bool.
    """
    assert not is_greedy(params), "the best token needs no distribution"
    rows = whole_blocks(penalize(logits, params, counts, paths, banned, allowed))
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    values = (rows - rows.amax(-1, keepdim=True)).div_(params.temperature)
    if is_truncated(params):
        values = values.masked_fill(values < floor(values, params), -torch.inf)
    return values.log_softmax(-1)[:, : logits.shape[-1]]


def is_penalized(
    params: SamplingParams, banned: Sequence[Sequence[int]] | None, allowed: Tensor | None
) -> bool:
    """Return True if `penalize` changes anything."""
    is_barred = allowed is not None or any(map(len, banned or ()))
    return is_barred or is_path_dependent(params) or bool(params.logit_bias)


def penalize(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    paths: Sequence[Sequence[int]] | None = None,
    banned: Sequence[Sequence[int]] | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return the logits [R, V] after penalties, logit bias and bans, in float32 or float64.

    Where nothing changes these are `logits` themselves, of any type: do not write to the result.
    """
    if not is_penalized(params, banned, allowed):
        return logits
    rows = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    if is_path_dependent(params):  # penalties start from raw logits: the last write is right
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
    for row, tokens in enumerate(banned or ()):
        if tokens:
            rows[row, list(tokens)] = -torch.inf
    if allowed is not None:
        rows.masked_fill_(~allowed.to(rows.device), -torch.inf)
    return rows


def _penalize_tokens(
    rows: Tensor, raw: Tensor, ids: Tensor, often: Tensor, params: SamplingParams
) -> None:
    """Write the penalized logits of tokens `ids`, which occur `often` times in the answer.

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
