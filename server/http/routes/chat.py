"""POST /v1/chat/completions."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from server.chat.chat_writer import ChatWriter, fold_chat
from server.chat.generation import Job, generate
from server.chat.grammars import made_of
from server.chat.prepare import prepare
from server.chat.sampling import default_limit, sampling_params
from server.chat.speculation import speculation_of
from server.http.answer import Caller, answer, end_answer, new_head
from server.http.body import body_of
from server.http.openapi import describe
from server.metrics.usage import Totals
from server.models.lending import LoadedModel
from server.schemas.answers import ChatChunk, ChatCompletion
from server.schemas.chat import ChatRequest

router = APIRouter()


@router.post("/chat/completions", **describe(ChatRequest, ChatCompletion, ChatChunk))
async def create_chat_completion(
    request: Request, body: Annotated[ChatRequest, Depends(body_of(ChatRequest))]
) -> Response:
    """Continue a conversation."""
    fold = functools.partial(fold_chat, logprobs=bool(body.logprobs))
    return await answer(request, body, chat_chunks, fold)


async def chat_chunks(
    model: LoadedModel, body: ChatRequest, caller: Caller
) -> AsyncGenerator[ChatChunk, None]:
    """The chunks of one chat; closing the generator aborts it."""
    asked = await asyncio.to_thread(prepare, model.tokenizer, model.info, model.formats, body)
    limit = body.token_limit
    if limit is None:
        limit = default_limit(model.entry.sampling.max_tokens, len(asked.prompt), model.info)
    params = sampling_params(
        body,
        model.entry.sampling,
        max_tokens=limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        shown_tokens=asked.shown_tokens,
        grammar=asked.grammar,
    )
    head, before = new_head("chatcmpl", model), model.statistics.traffic
    job = Job(
        head["id"],
        [asked.prompt],
        params,
        body.n or 1,
        key=caller.key,
        speculation=speculation_of(body.speculation, model.info),
        prediction=asked.prediction,
    )
    totals = Totals(job.num_choices, params.seed)
    writer = ChatWriter(
        head,
        totals,
        model.tokenizer.bytes.showing(asked.shown_tokens),
        asked.new_parser,
        logprobs=bool(body.logprobs),
        provenance=bool(body.provenance),
        include_usage=body.include_usage or not body.stream,
    )
    with made_of(body):
        async with contextlib.aclosing(generate(model, job, caller.measurement.wait)) as outputs:
            async for output in outputs:
                caller.measurement.token()
                for chunk in writer.write(output):
                    yield chunk
    end_answer(caller, model, head, totals, before)
