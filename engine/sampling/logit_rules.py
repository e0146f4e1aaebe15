"""The distribution that tokens are drawn from: penalties, bias, bans, temperature, truncation.

`sampling_logprobs` defines it. In shapes, V is the vocabulary size and R the number of rows.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.large_vocabularies.blocks import whole_blocks
from engine.sampling.truncation import is_truncated, truncation_floor
from engine.transfer import upload

MIN_TEMPERATURE = 1e-5  # lower temperatures count as 0: logits divided by them would overflow

_SPARE_COLUMNS = 256  # free columns of a new table


class TokenCounts:
    """The token counts of a sequence that penalties need: its prompt, and its answer so far.

    They are stored sparsely: one count per vocabulary entry would take more memory than the tokens.
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        self._prompt = frozenset(prompt)
        self._output: dict[int, int] = {}
        self._table: _Table | None = None  # made on first use: most requests have no penalties

    def add(self, token: int) -> None:
        """Add one emitted token to the counts of the answer."""
        count = self._output[token] = self._output.get(token, 0) + 1
        if self._table is not None:
            self._table.set(token, count)

    def table(self) -> tuple[Tensor, Tensor]:
        """Return all distinct tokens, int64, and the number of times each is in the answer."""
        if self._table is None:
            self._table = _Table(dict.fromkeys(self._prompt, 0) | self._output)
        return self._table.columns()

    def count_path(self, path: Sequence[int]) -> dict[int, int]:
        """Return, for each token of `path`, its count in the answer followed by the path."""
        counts: dict[int, int] = {}
        for token in path:
            counts[token] = counts.get(token, self._output.get(token, 0)) + 1
        return counts


class _Table:
    """Token counts as tensors with one column per token and spare columns for new tokens."""

    def __init__(self, counts: dict[int, int]) -> None:
        self._column = {token: column for column, token in enumerate(counts)}
        self._ids = torch.tensor([*counts, *[0] * _SPARE_COLUMNS])
        self._counts = torch.tensor([*counts.values(), *[0] * _SPARE_COLUMNS])

    def columns(self) -> tuple[Tensor, Tensor]:
        return self._ids[: len(self._column)], self._counts[: len(self._column)]

    def set(self, token: int, count: int) -> None:
        column = self._column.setdefault(token, len(self._column))
        if column == len(self._ids):
            self._ids = torch.cat([self._ids, torch.zeros_like(self._ids)])
            self._counts = torch.cat([self._counts, torch.zeros_like(self._counts)])
        self._ids[column], self._counts[column] = token, count


def is_greedy(params: SamplingParams) -> bool:
    """Return True if these parameters always choose the token with the best logit."""
    return params.temperature < MIN_TEMPERATURE or params.top_k == 1 or params.top_p <= 0


def is_path_dependent(params: SamplingParams) -> bool:
    """Return True if a row's logits depend on the tokens before it, that is, with penalties."""
    return (
        params.repetition_penalty != 1
        or params.presence_penalty != 0
        or params.frequency_penalty != 0
    )


def sampling_logprobs(
    logits: Tensor,
    params: SamplingParams,
    counts: TokenCounts | None,
    *,
    paths: Sequence[Sequence[int]] | None = None,
    banned: Sequence[Sequence[int]] | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Return the log-probabilities [R, V] that tokens are drawn with; excluded tokens have -inf.

    The rules are applied in this order: repetition penalty (of prompt and answer), presence and
    frequency penalty (of the answer), logit bias, bans, temperature, min-p, top-k, top-p. The
    result is float32, or float64 for float64 logits. The parameters must not be greedy.

    Args:
        logits: [R, V].
        counts: the token counts of the sequence; needed only for penalties.
        paths: for each row, the drafted tokens between the last emitted token and the row.
        banned: for each row, the tokens that must not be chosen.
        allowed: the tokens that may be chosen, [R, V] bool; None: all of them.
    """
    assert not is_greedy(params), "greedy parameters have no distribution"
    rows = whole_blocks(penalize(logits, params, counts, paths, banned, allowed))
    rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
    values = (rows - rows.amax(-1, keepdim=True)).div_(params.temperature)
    if is_truncated(params):
        values = values.masked_fill(values < truncation_floor(values, params), -torch.inf)
    return values.log_softmax(-1)[:, : logits.shape[-1]]


def is_penalized(
    params: SamplingParams, banned: Sequence[Sequence[int]] | None, allowed: Tensor | None
) -> bool:
    """Return True if `penalize` changes any logits with these arguments."""
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

    If nothing changes, this returns `logits` itself, in its own type, so the result must not be
    written to. For the arguments see `sampling_logprobs`.
    """
    if not is_penalized(params, banned, allowed):
        return logits
    rows = logits.to(torch.promote_types(logits.dtype, torch.float32), copy=True)
    if is_path_dependent(params):  # computed from raw logits: later writes replace earlier ones
        assert counts is not None, "penalties need the sequence's counts"
        ids, count = counts.table()
        if params.repetition_penalty == 1:  # then tokens of the prompt do not change
            ids, count = ids[count > 0], count[count > 0]
        _penalize_tokens(rows, logits, ids, count, params)
        for row, path in enumerate(paths or ()):
            if along := counts.count_path(path):
                ids, count = torch.tensor([*along]), torch.tensor([*along.values()])
                _penalize_tokens(rows[row, None], logits[row, None], ids, count, params)
    if params.logit_bias:
        biased, bias = zip(*params.logit_bias, strict=True)
        ids = upload(torch.tensor(biased), rows.device)
        rows[:, ids] += upload(torch.tensor(bias, dtype=rows.dtype), rows.device)
    size = rows.shape[-1]
    if barred := [row * size + t for row, tokens in enumerate(banned or ()) for t in tokens]:
        rows.view(-1).index_fill_(0, upload(torch.tensor(barred), rows.device), -torch.inf)
    if allowed is not None:
        rows.masked_fill_(~upload(allowed, rows.device), -torch.inf)
    return rows


def _penalize_tokens(
    rows: Tensor, raw: Tensor, ids: Tensor, count: Tensor, params: SamplingParams
) -> None:
    """Write the penalized logits of tokens `ids`, which occur `count` times in the answer.

    The repetition penalty is that of CTRL (arXiv 1909.05858, section 4.1), except that negative
    logits are multiplied, as in all common implementations. The presence and frequency penalties
    are defined as in OpenAI's API.

    Args:
        rows: the logits [n, V] to write to.
        raw: the logits [n, V] before penalties.
    """
    ids = upload(ids, rows.device)
    counts = upload(count, rows.device).to(rows.dtype)
    values = raw[:, ids].to(rows.dtype)
    penalty = params.repetition_penalty
    values = torch.where(values > 0, values / penalty, values * penalty)
    values -= params.frequency_penalty * counts
    values -= params.presence_penalty * (counts > 0).to(rows.dtype)
    rows[:, ids] = values
