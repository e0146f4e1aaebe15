"""Requests that the model can never serve are refused before they are sent."""

from typing import Any

import pytest

from engine.errors import RequestError
from engine.messages import Generate, ModelInfo, SamplingParams
from engine.process.admission import check_request

INFO = ModelInfo(
    model_id="m",
    vocab_size=100,
    context_length=32,
    capacity_tokens=24,
    max_sequences=1,
    eos_token_ids=(),
    numerics="strict",
    fingerprint="",
    tokenizer_path="",
    plan="",
)


@pytest.mark.parametrize(
    ("prompt", "n", "params", "code", "param", "words"),
    [
        ([], 1, {}, "invalid_prompt", None, "empty"),
        ([5], 0, {}, "invalid_value", "n", "n is 0"),
        ([5, 100], 1, {}, "invalid_token", "prompt", "0 to 99"),
        ([5, -1], 1, {}, "invalid_token", "prompt", "id -1"),
        ([5], 1, {"stop_token_ids": (100,)}, "invalid_token", "stop_token_ids", "id 100"),
        ([5], 1, {"logit_bias": ((-2, 1.0),)}, "invalid_token", "logit_bias", "id -2"),
        ([5], 1, {"max_tokens": -1}, "invalid_value", "max_tokens", "at least 0"),
        ([5] * 24, 1, {}, "context_length_exceeded", "prompt", "24 tokens and leaves no room"),
        (
            [5] * 25,
            1,
            {"max_tokens": 0},
            "context_length_exceeded",
            "prompt",
            "25 tokens and leaves",
        ),
        ([5] * 20, 1, {"max_tokens": 5}, "context_length_exceeded", "max_tokens", "25 tokens"),
    ],
)
def test_a_request_that_can_never_be_served_is_refused(
    prompt: list[int], n: int, params: dict[str, Any], code: str, param: str | None, words: str
) -> None:
    request = Generate("r", tuple(prompt), SamplingParams(**params), n)
    with pytest.raises(RequestError, match=words) as refused:
        check_request(request, INFO)
    assert (refused.value.code, refused.value.param) == (code, param)


@pytest.mark.parametrize(("num_prompt", "max_tokens"), [(23, None), (20, 4), (1, 23), (24, 0)])
def test_a_request_that_just_fits_is_admitted(num_prompt: int, max_tokens: int | None) -> None:
    params = SamplingParams(max_tokens=max_tokens)
    check_request(Generate("r", (99,) * num_prompt, params), INFO)


def test_a_prediction_with_unknown_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="prediction: token id 100") as refused:
        check_request(Generate("r", (5,), SamplingParams(), prediction=(7, 100)), INFO)
    assert (refused.value.code, refused.value.param) == ("invalid_token", "prediction")
