"""The model's own log-probabilities, which clients may request.

They are computed before temperature, penalties and truncation. In shapes, V is the vocabulary size
and R the number of rows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from engine.errors import not_finite
from engine.messages import TokenLogprob

LOWEST_LOGPROB = -9999.0  # replaces minus infinity, which JSON cannot represent


def model_logprobs(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """Return the log-probabilities that `rows_logprobs` returns for one row of logits [V]."""
    return rows_logprobs(logits[None], [token], top)[0]


def rows_logprobs(logits: Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """Return the log-probabilities of each row's token and of the row's `top` best tokens.

    No result is below -9999.0. Of tokens with equal log-probabilities, the lower id goes first.

    Args:
        logits: the model's logits [R, V].
        tokens: one token for each row.

    Raises `PassFailed` for logits that are NaN or infinite.
    """
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_probs = logits.to(dtype).log_softmax(-1).clamp_(min=LOWEST_LOGPROB)
    own = log_probs[range(len(tokens)), tokens].tolist()
    if any(map(math.isnan, own)):
        raise not_finite()
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
