"""The answer to a request for text completions: prompts and parameters, then chunks."""

import asyncio
from collections.abc import AsyncGenerator

from server.chat.answer import Caller, new_answer, new_id, run
from server.chat.echo import Echo
from server.chat.generation import Job
from server.chat.grammars import completion_grammar
from server.chat.prompt import text_prompts
from server.chat.sampling import default_limit, sampling_params
from server.chat.speculation import speculation_of
from server.chat.text_writer import TextWriter
from server.errors import ApiError
from server.models.lending import LoadedModel
from server.schemas.answers import TextCompletion
from server.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest


async def text_chunks(
    model: LoadedModel, body: CompletionRequest, caller: Caller
) -> AsyncGenerator[TextCompletion, None]:
    """Return a generator of the chunks that answer a completion request; closing it aborts them.

    Raise `ApiError` 400 for a request that this model cannot answer.
    """
    prompts, echoes = await asyncio.to_thread(_prepare, model, body)
    grammar = await asyncio.to_thread(completion_grammar, body)
    limit = body.max_tokens
    if limit is None:
        longest = max(len(prompt) for prompt in prompts)
        limit = default_limit(DEFAULT_MAX_TOKENS, longest, model.info)
    params = sampling_params(
        body,
        model.entry.sampling,
        max_tokens=limit,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        grammar=grammar,
    )
    job = Job(
        new_id("cmpl"),
        prompts,
        params,
        body.n or 1,
        body.best_of or 0,
        caller.key,
        speculation_of(body.speculation, model.info),
    )
    answer = new_answer(
        model, body, job, spelling=model.tokenizer.bytes, logprobs=body.logprobs is not None
    )
    shown = [echo for echo in echoes for _ in range(job.n)]
    return run(model, body, caller, job, answer, TextWriter(answer, shown))


def _prepare(
    model: LoadedModel, body: CompletionRequest
) -> tuple[list[tuple[int, ...]], list[Echo]]:
    """Return the token ids of each prompt, and what the answer shows of each.

    Raise `ApiError` 400 for a prompt that is too long.
    """
    prompts = text_prompts(model.tokenizer, model.info, body.prompts)
    longest, context = max(len(prompt) for prompt in prompts), model.info.context_length
    if longest > context:  # the engine's client checks this too, but not for `max_tokens: 0`
        message = (
            f"This model's maximum context length is {context} tokens. However, the prompt has "
            f"{longest} tokens. Shorten the prompt."
        )
        raise ApiError(message, code="context_length_exceeded", param="prompt")
    if not body.echo:
        return prompts, [Echo()] * len(prompts)
    echoes = [
        Echo(given if isinstance(given, str) else model.tokenizer.decode(ids), ids)
        for given, ids in zip(body.prompts, prompts, strict=True)
    ]
    return prompts, echoes
