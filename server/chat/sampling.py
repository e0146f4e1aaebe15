"""The engine's sampling parameters, made of a request's fields and a model's defaults."""

import secrets

from engine.messages import ModelInfo, SamplingParams, ThinkingBudget
from server.config.model_file import SamplingSection
from server.errors import ApiError
from server.schemas.fields import GenerationBody

SEED_BITS = 53  # readers of JSON that hold every number as a double keep no more bits


def sampling_params(
    body: GenerationBody,
    defaults: SamplingSection,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    shown_tokens: tuple[int, ...] = (),
    grammar: str = "",
    thinking: ThinkingBudget | None = None,
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """Return the sampling parameters of one request.

    Raise `ApiError` 400 if `min_tokens` exceeds the limit. Token ids and lengths are checked later,
    by the engine's client.

    Args:
        body: the request; a field that it leaves out has the model's default.
        defaults: the model's values for what a request leaves out.
        max_tokens: the limit of the answer; None: until the context is full.
        logprobs: the number of alternatives to each emitted token; None: no log-probabilities.
        shown_tokens: the special tokens that the answer's text shows.
        grammar: the grammar of the answer; "" for any text.
        thinking: the budget of the answer's thinking part; None: no limit.
        prompt_logprobs: the number of alternatives to each token of the prompt; None: no
            log-probabilities.
    """

    def value_of(name: str) -> float:
        value = getattr(body, name)
        return float(getattr(defaults, name) if value is None else value)

    if body.min_tokens and max_tokens is not None and body.min_tokens > max_tokens:
        message = f"'min_tokens' ({body.min_tokens}) exceeds the token limit ({max_tokens})."
        raise ApiError(message, code="invalid_value", param="min_tokens")
    top_p, top_k = value_of("top_p"), max(0, int(value_of("top_k")))
    if top_p == 0:  # only the most likely token
        top_p, top_k = 1.0, 1
    return SamplingParams(
        temperature=value_of("temperature"),
        top_p=top_p,
        top_k=top_k,
        min_p=value_of("min_p"),
        repetition_penalty=value_of("repetition_penalty"),
        presence_penalty=value_of("presence_penalty"),
        frequency_penalty=value_of("frequency_penalty"),
        logit_bias=tuple({int(t): b for t, b in (body.logit_bias or {}).items()}.items()),
        seed=secrets.randbits(SEED_BITS) if body.seed is None else body.seed % 2**64,
        max_tokens=max_tokens,
        min_tokens=body.min_tokens or 0,
        ignore_eos=bool(body.ignore_eos),
        stop=body.stop_strings,
        stop_token_ids=tuple(dict.fromkeys(body.stop_token_ids or ())),
        logprobs=logprobs,
        shown_tokens=shown_tokens,
        grammar=grammar,
        thinking=thinking,
        prompt_logprobs=prompt_logprobs,
    )


def fitting_limit(limit: int | None, num_prompt: int, info: ModelInfo) -> int | None:
    """Return `limit`, but at most what a prompt of `num_prompt` tokens leaves free, and at least 1.

    It is for limits that must not make the engine refuse the request. None stays None.
    """
    room = min(info.context_length, info.capacity_tokens) - num_prompt
    return None if limit is None else max(1, min(limit, room))
