"""POST /v1/completions."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.chat.echo import Echo
from server.chat.generation import Job, generate
from server.chat.grammars import completion_grammar, made_of
from server.chat.prompt import text_prompts
from server.chat.sampling import default_limit, sampling_params
from server.chat.speculation import speculation_of
from server.chat.text_writer import TextWriter, fold_text
from server.errors import ApiError
from server.http.answer import Caller, answer, end_answer, new_head
from server.http.body import body_of
from server.http.openapi import describe
from server.http.state import state_of
from server.metrics.usage import Totals
from server.models.lending import LoadedModel
from server.schemas.answers import TextCompletion
from server.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest

router = APIRouter()


@router.post("/completions", **describe(CompletionRequest, TextCompletion, TextCompletion))
async def create_completion(
    request: Request, body: Annotated[CompletionRequest, Depends(body_of(CompletionRequest))]
) -> Response:
    """Continue texts or token ids."""
    most = state_of(request).settings.max_queue
    if len(body.prompts) > most:  # each is queued by itself: it would never be accepted
        message = f"'prompt' has {len(body.prompts)} prompts; this server takes at most {most}."
        raise ApiError(message, code="invalid_value", param="prompt")
    return await answer(request, body, text_chunks, fold_text)


async def text_chunks(
    model: LoadedModel, body: CompletionRequest, caller: Caller
) -> AsyncGenerator[TextCompletion, None]:
    """The chunks of one completion; closing the generator aborts it."""
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
    head, before = new_head("cmpl", model), model.statistics.traffic
    job = Job(
        head["id"],
        prompts,
        params,
        body.n or 1,
        body.best_of or 0,
        caller.key,
        speculation_of(body.speculation, model.info),
    )
    totals = Totals(job.num_choices, params.seed)
    writer = TextWriter(
        head,
        totals,
        model.tokenizer.bytes,
        logprobs=body.logprobs is not None,
        provenance=bool(body.provenance),
        echoes=[echo for echo in echoes for _ in range(job.n)],
        include_usage=body.include_usage or not body.stream,
    )
    with made_of(body):
        async with contextlib.aclosing(generate(model, job, caller.measurement.wait)) as outputs:
            async for output in outputs:
                caller.measurement.token()
                for chunk in writer.write(output):
                    yield chunk
    end_answer(caller, model, head, totals, before)


def _prepare(
    model: LoadedModel, body: CompletionRequest
) -> tuple[list[tuple[int, ...]], list[Echo]]:
    """The ids of each prompt, and what of it is shown."""
    prompts = text_prompts(model.tokenizer, model.info, body.prompts)
    longest, context = max(len(prompt) for prompt in prompts), model.info.context_length
    if longest > context:  # said by the engine's client too, but not for `max_tokens: 0`
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
