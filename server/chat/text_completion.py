"""The answer to a request for text completions: prompts and parameters, then chunks."""

from collections.abc import AsyncGenerator

from server.chat.answer import Caller, new_answer, new_id, note_left_out, run
from server.chat.continuing import check_continued
from server.chat.generation import Job
from server.chat.passes import traced_nodes
from server.chat.prepare import prepare_texts
from server.chat.sampling import fitting_limit, sampling_params
from server.chat.speculation import speculation_of
from server.chat.text_writer import TextWriter
from server.models.loaded_model import LoadedModel
from server.schemas.answers import TextCompletion
from server.schemas.completions import DEFAULT_MAX_TOKENS, CompletionRequest


async def text_chunks(
    raw: bytes, most_prompts: int, model: LoadedModel, body: CompletionRequest, caller: Caller
) -> AsyncGenerator[TextCompletion, None]:
    """Return a generator of the chunks that answer a completion request; closing it aborts them.

    `body` is the request in `raw`; the prompts of a large one are only in `raw`. Each prompt is
    queued by itself, so a request of more than `most_prompts` would never be accepted.

    Raise `ApiError` 400 for a request that this model cannot answer.
    """
    asked = await model.text.call_on_model(prepare_texts, raw, model.info, most_prompts)
    note_left_out(caller.measurement, asked.left_out)
    limit = body.max_tokens
    if limit is None:
        longest = max(len(prompt) for prompt in asked.prompts)
        limit = fitting_limit(DEFAULT_MAX_TOKENS, longest, model.info)
    params = sampling_params(
        body,
        model.sampling,
        max_tokens=limit,
        logprobs=body.logprobs,
        prompt_logprobs=body.logprobs if body.echo else None,
        grammar=asked.grammar,
    )
    check_continued(body, asked.continued, params, model.info, model.fingerprints)
    job = Job(
        new_id("cmpl"),
        asked.prompts,
        params,
        body.n or 1,
        body.best_of or 0,
        caller.key,
        speculation_of(body.speculation, model.info),
        continued=asked.continued,
        fingerprint=body.fingerprint,
        traced_nodes=traced_nodes(body, len(asked.prompts)),
    )
    answer = new_answer(
        model, body, job, spelling=model.facts.bytes, logprobs=body.logprobs is not None
    )
    shown = [echo for echo in asked.echoes for _ in range(job.n)]
    return run(model, body, caller, job, answer, TextWriter(answer, shown))
