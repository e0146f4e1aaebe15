"""The answer to a chat request: prompt and parameters, then chunks."""

import functools
from collections.abc import AsyncGenerator

from engine.messages import AnswerFormat
from server.chat.answer import Caller, new_answer, new_id, note_left_out, run
from server.chat.chat_writer import ChatWriter
from server.chat.continuing import check_continued
from server.chat.generation import Job
from server.chat.passes import traced_nodes
from server.chat.prepare import prepare
from server.chat.received import ChatSource
from server.chat.sampling import fitting_limit, sampling_params
from server.chat.speculation import speculation_of
from server.models.loaded_model import LoadedModel
from server.schemas.answers import ChatChunk
from server.schemas.chat import ChatRequest, TranslatedChat


async def chat_chunks(
    source: ChatSource, model: LoadedModel, body: ChatRequest, caller: Caller
) -> AsyncGenerator[ChatChunk, None]:
    """Return a generator of the chunks that answer a chat; closing it aborts the answer.

    `body` is the chat of `source`; the text process reads the messages from the bytes of `source`.

    Raise `ApiError` 400 for a request that this model cannot answer.
    """
    parsers, defaults = model.entry.parsers, model.sampling
    asked = await model.text.call_on_model(
        prepare,
        source.raw,
        source.read,
        model.info,
        parsers.tools,
        parsers.reasoning,
        defaults.thinking_budget,
    )
    note_left_out(caller.measurement, asked.left_out)
    formats = model.formats.forced if asked.grammar else model.formats
    new_parser = functools.partial(formats.parser, asked.tools, asked.before)
    limit = body.token_limit
    if limit is None or (isinstance(body, TranslatedChat) and body.clamps_limit):
        most = defaults.max_tokens if limit is None else limit
        limit = fitting_limit(most, len(asked.prompt), model.info)
    params = sampling_params(
        body,
        defaults,
        max_tokens=limit,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        shown_tokens=asked.shown_tokens,
        grammar=asked.grammar,
        thinking=asked.thinking,
    )
    check_continued(body, asked.continued, params, model.info, model.fingerprints)
    stops_in = AnswerFormat(*formats.names, asked.tools, asked.before)
    job = Job(
        new_id("chatcmpl"),
        [asked.prompt],
        params,
        body.n or 1,
        key=caller.key,
        speculation=speculation_of(body.speculation, model.info),
        prediction=asked.prediction,
        answer_format=stops_in if params.stop else None,
        continued=asked.continued,
        fingerprint=body.fingerprint,
        traced_nodes=traced_nodes(body),
    )
    spelling = model.facts.bytes.showing(asked.shown_tokens)
    answer = new_answer(model, body, job, spelling=spelling, logprobs=bool(body.logprobs))
    writer = ChatWriter(
        answer,
        new_parser,
        custom_names=asked.custom_names,
        is_call=asked.is_call,
        has_old_calls=asked.has_old_calls,
    )
    return run(model, body, caller, job, answer, writer)
