"""Tests of the log-probabilities that clients can request."""

import pytest
import torch

from engine.sampling.logprobs import model_logprobs, rows_logprobs
from tests.engine.logits import random_logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_rows_logprobs_do_not_depend_on_other_rows(dtype: torch.dtype) -> None:
    logits = random_logits(33, 130).to(dtype)
    tokens = [row * 3 for row in range(33)]
    together = rows_logprobs(logits, tokens, 4)
    alone = [model_logprobs(own, token, 4) for own, token in zip(logits, tokens, strict=True)]
    assert together == alone


def test_api_07_logprobs_are_the_models_own_and_never_infinite() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0, -torch.inf])
    expected = logits.log_softmax(-1).tolist()
    result = model_logprobs(logits, 2, 3)
    assert result.token == 2
    assert result.logprob == pytest.approx(expected[2])
    assert [token for token, _ in result.top] == [1, 3, 2]
    assert [value for _, value in result.top] == pytest.approx([expected[t] for t in (1, 3, 2)])
    assert model_logprobs(logits, 4, 0).logprob == -9999.0
    assert model_logprobs(logits, 4, 0).top == ()
    assert model_logprobs(logits, 0, 20).top[-1] == (4, -9999.0)
    assert [token for token, _ in model_logprobs(torch.zeros(9), 5, 2).top] == [0, 1]
