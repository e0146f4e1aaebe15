"""The check of a request before it is sent to the engine: whether the model can serve it at all."""

from collections.abc import Iterable
from itertools import chain

from engine.errors import RequestError
from engine.messages import Generate, ModelInfo, SamplingParams


def check_request(request: Generate, info: ModelInfo) -> None:
    """Raise `RequestError` for a request that the loaded model can never serve."""
    if request.n < 1:
        raise RequestError(f"n is {request.n}; it must be at least 1.", "invalid_value", "n")
    if not request.prompt:
        raise RequestError("The prompt is empty; give at least one token.", "invalid_prompt")
    params = request.params
    _check_ids(request.prompt, info, "prompt")
    _check_ids(params.stop_token_ids, info, "stop_token_ids")
    _check_ids((token for token, _ in params.logit_bias), info, "logit_bias")
    _check_ids(request.prediction, info, "prediction")
    for tail in request.emitted:
        _check_ids(tail.ids, info, "continue_tokens")
    if params.thinking is not None:
        _check_ids(chain(*params.thinking.closings), info, "thinking")
    check_length(len(request.prompt), params, info)


def _check_ids(ids: Iterable[int], info: ModelInfo, param: str) -> None:
    wrong = next((token for token in ids if not 0 <= token < info.vocab_size), None)
    if wrong is not None:
        raise RequestError(
            f"{param}: token id {wrong} is outside the vocabulary of {info.model_id!r}, "
            f"0 to {info.vocab_size - 1}.",
            "invalid_token",
            param,
        )


def check_length(num_prompt: int, params: SamplingParams, info: ModelInfo) -> None:
    """Raise `RequestError` if a prompt and its answer do not fit the context or the KV cache."""
    longest, max_tokens = min(info.context_length, info.capacity_tokens), params.max_tokens
    if max_tokens is not None and max_tokens < 0:
        raise RequestError(
            f"max_tokens is {max_tokens}; it must be at least 0.", "invalid_value", "max_tokens"
        )
    wanted = num_prompt + (params.least_tokens if max_tokens is None else max_tokens)
    if wanted <= longest:
        return
    limit = f"This model's maximum context length is {info.context_length} tokens"
    if longest < info.context_length:
        limit += f", and its KV pages hold {longest} (raise memory.device for more)"
    if num_prompt + params.least_tokens > longest:
        raise RequestError(
            f"{limit}. However, the prompt has {num_prompt} tokens and leaves no room for an "
            "answer. Shorten the prompt.",
            "context_length_exceeded",
            "prompt",
        )
    raise RequestError(
        f"{limit}. However, you requested {wanted} tokens "
        f"({num_prompt} in the prompt, {max_tokens} in the completion). Shorten the prompt or "
        "lower max_tokens.",
        "context_length_exceeded",
        "max_tokens",
    )
