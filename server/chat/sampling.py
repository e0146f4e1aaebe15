"""From a request's fields, the model's defaults and its limits to the engine's parameters."""

import secrets

from engine.messages import ModelInfo, SamplingParams
from server.config.model_file import SamplingSection
from server.errors import ApiError
from server.schemas.fields import GenerationBody

SEED_BITS = 53  # what survives readers of JSON that hold every number as a double


def sampling_params(
    body: GenerationBody,
    defaults: SamplingSection,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    shown_tokens: tuple[int, ...] = (),
    grammar: str = "",
    prompt_logprobs: int | None = None,
) -> SamplingParams:
    """The parameters of one request; token ids and lengths are checked by the engine's client."""

    def given(name: str) -> float:
        value = getattr(body, name)
        return float(getattr(defaults, name) if value is None else value)

    if body.min_tokens and max_tokens is not None and body.min_tokens > max_tokens:
        message = f"'min_tokens' ({body.min_tokens}) exceeds the token limit ({max_tokens})."
        raise ApiError(message, code="invalid_value", param="min_tokens")
    top_p, top_k = given("top_p"), max(0, int(given("top_k")))
    if top_p == 0:  # nothing but the top token
        top_p, top_k = 1.0, 1
    return SamplingParams(
        temperature=given("temperature"),
        top_p=top_p,
        top_k=top_k,
        min_p=given("min_p"),
        repetition_penalty=given("repetition_penalty"),
        presence_penalty=given("presence_penalty"),
        frequency_penalty=given("frequency_penalty"),
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
        prompt_logprobs=prompt_logprobs,
    )


def default_limit(default: int | None, num_prompt: int, info: ModelInfo) -> int | None:
    """A limit nobody asked for takes only what room there is; None: until the context is full."""
    room = min(info.context_length, info.capacity_tokens) - num_prompt
    return None if default is None else max(1, min(default, room))
