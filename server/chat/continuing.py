"""The checks of a request that goes on with an answer which another request has begun."""

from array import array
from collections.abc import Collection, Mapping, Sequence

from engine.messages import ModelInfo, SamplingParams
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest

Body = ChatRequest | CompletionRequest
Continued = Mapping[int, Sequence[int]]  # by index of the choice, the ids that the client has


def continued_ids(body: Body, num_prompts: int = 1) -> "dict[int, array[int]]":
    """Return the ids that the answer goes on after, by index of the choice.

    Raise `ApiError` 400 for a choice that the answer does not have.
    """
    continued, num_choices = body.continued, num_prompts * (body.n or 1)
    if isinstance(body.continue_tokens, list) and num_choices > 1:
        message = (
            f"'continue_tokens' is one list, but the answer has {num_choices} choices: give an "
            'object, such as {"0": [...]}'
        )
        raise ApiError(f"{message}.", code="invalid_value", param="continue_tokens")
    for index in continued:
        if index >= num_choices:
            raise _refusal(index, f"The answer has no choice {index}, only 0 to {num_choices - 1}")
    return {index: array("Q", ids) for index, ids in continued.items()}


def check_continued(
    body: Body,
    continued: Continued,
    params: SamplingParams,
    info: ModelInfo,
    fingerprints: Collection[str],
) -> None:
    """Raise `ApiError` 400 unless this engine can go on with the answer, as far as is known here.

    The engine's client checks whether the ids exist, and the engine whether the answer can have
    them.

    Args:
        fingerprints: those of the engines that may go on with it, here and at peers.
    """
    if body.fingerprint is not None and body.fingerprint not in fingerprints:
        raise ApiError(
            f"This engine has the fingerprint '{info.fingerprint}', not '{body.fingerprint}', so "
            "its tokens may differ. Send the request to the server that began the answer, or begin "
            "it anew without 'continue_tokens' and 'fingerprint'.",
            code="fingerprint_mismatch",
            param="fingerprint",
        )
    if not continued:
        return
    if params.temperature > 0 and body.seed is None:
        raise ApiError(
            "'continue_tokens' needs the 'seed' of the answer at a temperature above 0. If the "
            "request had none, the answer has it as 'timings.seed'.",
            code="missing_required_parameter",
            param="seed",
        )
    for index, ids in continued.items():
        if params.max_tokens is not None and len(ids) > params.max_tokens:
            limit = f"{params.max_tokens} tokens are the limit of an answer to this request"
            raise _refusal(index, f"{len(ids)} tokens were given, but {limit}")
    if isinstance(body, CompletionRequest):
        _check_completion(body, continued)


def _check_completion(body: CompletionRequest, continued: Continued) -> None:
    if (body.best_of or 1) > (body.n or 1):
        raise ApiError(
            "An answer with 'best_of' above 'n' cannot be continued, because its choices are "
            "ranked at its end. Send the request without 'continue_tokens'.",
            code="invalid_value",
            param="best_of",
        )
    n = body.n or 1
    begun = {index // n for index in continued}
    if body.echo and body.logprobs is not None:
        for index in (prompt * n + k for prompt in begun for k in range(n)):
            if index not in continued:
                raise ApiError(
                    f"'echo' with 'logprobs' can be continued only if all {n} choices of a prompt "
                    f"have tokens, and choice {index} has none. Send the request without "
                    "'continue_tokens'.",
                    code="invalid_value",
                    param="echo",
                )


def _refusal(index: int, message: str) -> ApiError:
    return ApiError(f"{message}.", code="invalid_value", param=f"continue_tokens.{index}")
