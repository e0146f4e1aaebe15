"""One answer of the engine: its caller, what its chunks share, and how it is generated."""

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from engine.text.detokenize import TokenBytes
from server.chat.generation import Job, Output, generate
from server.chat.grammars import name_grammar_field
from server.metrics.measurement import Asked, Measurement
from server.metrics.usage import Totals
from server.models.loaded_model import LoadedModel
from server.schemas.answers import Costs, Source
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest

log = logging.getLogger("understudy")

ChunkT_co = TypeVar("ChunkT_co", covariant=True)


@dataclass(frozen=True)
class Caller:
    """The client that sent a request, and what is measured of the request."""

    request_id: str
    key: str  # the name of the API key, which the scheduler treats fairly; "" without keys
    measurement: Measurement


def note_left_out(measurement: Measurement, names: Sequence[str]) -> None:
    """Report what of a request is left out: in the header of its answer, and in the log."""
    if names:
        measurement.leave_out(names)
        log.info("left out of the request: %s", measurement.left_out)


class Writer(Protocol[ChunkT_co]):
    """A converter of the engine's outputs to the chunks of one answer."""

    def write(self, output: Output) -> Iterator[ChunkT_co]:
        """Yield the chunks of one output."""


@dataclass(frozen=True)
class Answer:
    """The properties that all chunks of one answer share.

    Args:
        id: the id of the answer.
        source: the fields that say when and by which model the answer was made.
        totals: adds up what the choices cost; is complete when all of them have finished.
        spelling: the bytes that each token adds to the text.
        logprobs: whether chunks have the log-probability of each token.
        provenance: whether chunks have the origin of each token.
        has_passes: whether chunks have the passes that emitted their tokens.
        token_ids: whether chunks have the ids of the prompt and of their tokens.
        prompts: the token ids of the prompt of each choice that is shown.
        include_usage: whether the usage comes in a chunk without choices, the last one.
        has_running_usage: whether all chunks have the usage so far.
    """

    id: str
    source: Source
    totals: Totals
    spelling: TokenBytes
    logprobs: bool
    provenance: bool
    has_passes: bool
    token_ids: bool
    prompts: Sequence[Sequence[int]]
    include_usage: bool
    has_running_usage: bool

    def costs(self, *, is_last: bool) -> Costs:
        """Return the costs in a chunk of choices; `is_last`: the chunk is a choice's last one."""
        costs: Costs = {}
        if self.has_running_usage:
            costs["usage"] = self.totals.usage() if is_last else self.totals.counts()
        elif self.include_usage:
            costs["usage"] = None
        if is_last and self.totals.is_complete and not self.include_usage:
            costs["timings"] = self.totals.timings()
        return costs

    def final_costs(self) -> Costs | None:
        """Return the costs in the chunk without choices; None if it is not due."""
        if not (self.include_usage and self.totals.is_complete):
            return None
        return {"usage": self.totals.usage(), "timings": self.totals.timings()}


def new_id(prefix: str) -> str:
    """Return a random id for a new answer, which begins with `prefix`."""
    return f"{prefix}-{secrets.token_hex(12)}"


def new_answer(
    model: LoadedModel,
    body: ChatRequest | CompletionRequest,
    job: Job,
    *,
    spelling: TokenBytes,
    logprobs: bool,
) -> Answer:
    """Return the properties that the chunks of the answer to `body` share."""
    source: Source = {
        "created": int(time.time()),
        "model": model.entry.id,
        "system_fingerprint": model.info.fingerprint,
    }
    return Answer(
        job.id,
        source,
        Totals(
            job.num_choices,
            job.params.seed,
            sum(map(len, job.prompts)),
            num_given=sum(map(len, job.continued.values())),
        ),
        spelling,
        logprobs=logprobs,
        provenance=bool(body.provenance),
        has_passes=body.provenance == "tree",
        token_ids=bool(body.return_token_ids),
        prompts=[prompt for prompt in job.prompts for _ in range(job.n)],
        include_usage=body.include_usage or not body.stream,
        has_running_usage=body.has_running_usage,
    )


def _asked(job: Job) -> Asked:
    params = job.params
    return Asked(job.id, job.num_choices, params.max_tokens, params.temperature, params.top_p)


async def run(
    model: LoadedModel,
    body: ChatRequest | CompletionRequest,
    caller: Caller,
    job: Job,
    answer: Answer,
    writer: Writer[ChunkT_co],
) -> AsyncGenerator[ChunkT_co, None]:
    """Run `job`, and yield the chunks that `writer` makes of its outputs.

    At its end the answer is logged. Closing the generator aborts the job.
    """
    before = model.statistics.history.sums
    caller.measurement.begin(answer.totals, _asked(job))
    with name_grammar_field(body):
        outputs = generate(model, job, caller.request_id, caller.measurement.wait, answer.totals)
        async with contextlib.aclosing(outputs):
            async for output in outputs:
                if caller.measurement.first_token_s is None:
                    # The engine that began it: another one may have died before its first token.
                    found = model.fingerprint_of(f"{job.id}-0")
                    answer.source["system_fingerprint"] = found or model.info.fingerprint
                caller.measurement.note_tokens(len(output.tokens.ids))
                for chunk in writer.write(output):
                    yield chunk
    caller.measurement.complete()
    log.info(
        "%s %s: %s%s",
        job.id,
        model.entry.id,
        answer.totals.summary(),
        model.statistics.link_since(before),
    )
