"""The answer to a chat request: prompt and parameters, then chunks."""

import asyncio
from collections.abc import AsyncGenerator

from server.chat.answer import Caller, new_answer, new_id, run
from server.chat.chat_writer import ChatWriter
from server.chat.generation import Job
from server.chat.prepare import prepare
from server.chat.sampling import default_limit, sampling_params
from server.chat.speculation import speculation_of
from server.models.lending import LoadedModel
from server.schemas.answers import ChatChunk
from server.schemas.chat import ChatRequest


async def chat_chunks(
    model: LoadedModel, body: ChatRequest, caller: Caller
) -> AsyncGenerator[ChatChunk, None]:
    """Return a generator of the chunks that answer a chat; closing it aborts the answer.

    Raise `ApiError` 400 for a request that this model cannot answer.
    """
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
    job = Job(
        new_id("chatcmpl"),
        [asked.prompt],
        params,
        body.n or 1,
        key=caller.key,
        speculation=speculation_of(body.speculation, model.info),
        prediction=asked.prediction,
    )
    spelling = model.tokenizer.bytes.showing(asked.shown_tokens)
    answer = new_answer(model, body, job, spelling=spelling, logprobs=bool(body.logprobs))
    return run(model, body, caller, job, answer, ChatWriter(answer, asked.new_parser))
