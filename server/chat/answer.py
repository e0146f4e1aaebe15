"""One answer of the engine: who asked, what its chunks share, and how it is run and counted."""

import contextlib
import logging
import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

from engine.text.detokenize import TokenBytes
from server.chat.generation import Job, Output, generate
from server.chat.grammars import made_of
from server.metrics.measurement import Measurement
from server.metrics.usage import Totals
from server.models.lending import LoadedModel
from server.schemas.answers import Costs, Source
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest

log = logging.getLogger("understudy")

ChunkT_co = TypeVar("ChunkT_co", covariant=True)


@dataclass(frozen=True)
class Caller:
    """Who asks."""

    request_id: str
    key: str  # the name of the API key, for fairness; "" without keys
    measurement: Measurement


class Writer(Protocol[ChunkT_co]):
    """Turns what the engine emits into the chunks of one answer."""

    def write(self, output: Output) -> Iterator[ChunkT_co]:
        """Return the chunks of one output."""


@dataclass(frozen=True)
class Answer:
    """What the chunks of one answer share.

    Args:
        totals: adds up what the choices cost, and knows when all are finished.
        spelling: the bytes that tokens add to the text.
        logprobs, provenance: what is told of each token beside its text.
        include_usage: whether a chunk of its own, the last one, has the usage.
    """

    id: str
    source: Source
    totals: Totals
    spelling: TokenBytes
    logprobs: bool
    provenance: bool
    include_usage: bool

    def costs(self, *, is_last: bool) -> Costs:
        """Return the costs in a chunk of choices; `is_last`: in the last one of a choice."""
        if self.include_usage:
            return {"usage": None}
        if is_last and self.totals.complete:
            return {"timings": self.totals.timings()}
        return {}

    def final_costs(self) -> Costs | None:
        """Return the costs in a chunk without choices; None while there is no such chunk."""
        if not (self.include_usage and self.totals.complete):
            return None
        return {"usage": self.totals.usage(), "timings": self.totals.timings()}


def new_id(prefix: str) -> str:
    """Return the id of a new answer."""
    return f"{prefix}-{secrets.token_hex(12)}"


def new_answer(
    model: LoadedModel,
    body: ChatRequest | CompletionRequest,
    job: Job,
    *,
    spelling: TokenBytes,
    logprobs: bool,
) -> Answer:
    """Return what the chunks of the answer to `body` share."""
    source: Source = {
        "created": int(time.time()),
        "model": model.entry.id,
        "system_fingerprint": model.info.fingerprint,
    }
    return Answer(
        job.id,
        source,
        Totals(job.num_choices, job.params.seed),
        spelling,
        logprobs=logprobs,
        provenance=bool(body.provenance),
        include_usage=body.include_usage or not body.stream,
    )


async def run(
    model: LoadedModel,
    body: ChatRequest | CompletionRequest,
    caller: Caller,
    job: Job,
    answer: Answer,
    writer: Writer[ChunkT_co],
) -> AsyncGenerator[ChunkT_co, None]:
    """Yield the chunks that `writer` makes of a job; count and log the answer at its end.

    Closing the generator aborts the job.
    """
    before = model.statistics.traffic
    with made_of(body):
        async with contextlib.aclosing(generate(model, job, caller.measurement.wait)) as outputs:
            async for output in outputs:
                caller.measurement.token()
                for chunk in writer.write(output):
                    yield chunk
    caller.measurement.complete(answer.totals)
    log.info(
        "%s: %s %s: %s%s",
        caller.request_id,
        job.id,
        model.entry.id,
        answer.totals.summary(),
        model.statistics.link_since(before),
    )
