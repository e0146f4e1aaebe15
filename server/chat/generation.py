"""From prompts to the engine's tokens, all choices of all prompts merged."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from engine.messages import AUTO, SamplingParams, Speculation, Stats, TokenLogprob, Tokens
from server.metrics.wait_status import Wait, in_line
from server.models.lending import LoadedModel


@dataclass(frozen=True)
class Job:
    """What one HTTP request asks of the engine."""

    id: str  # the answer's id
    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    n: int = 1  # choices shown per prompt
    best_of: int = 0  # choices generated per prompt, when more than n
    key: str = ""
    speculation: Speculation = AUTO
    prediction: Sequence[int] = ()  # tokens that the client expects

    @property
    def num_choices(self) -> int:
        """How many choices are generated, also those not shown."""
        return len(self.prompts) * max(self.n, self.best_of)


@dataclass(frozen=True)
class Output:
    """What a pass emitted for the choice shown as `index`; None: counted, not shown."""

    index: int | None
    tokens: Tokens


async def generate(model: LoadedModel, job: Job, wait: Wait) -> AsyncGenerator[Output, None]:
    """Run a job. Closing the generator aborts whatever still runs.

    `wait` is told the place of the job's first prompt, and is over when one of them runs.

    Raises the `EngineError` of the first prompt that is refused or fails.
    """
    if job.params.max_tokens == 0 and job.params.prompt_logprobs is None:
        for output in _nothing(job):
            yield output
        return
    wait.for_(lambda: in_line("waiting", model.engine.position(f"{job.id}-0")))
    async with contextlib.AsyncExitStack() as stack:
        streams: list[AsyncGenerator[Tokens, None]] = []
        params = job.params
        ranks = job.best_of > job.n
        if ranks and params.logprobs is None:
            params = replace(params, logprobs=0)
        for i, prompt in enumerate(job.prompts):
            stream = model.engine.generate(
                f"{job.id}-{i}",
                prompt,
                params,
                max(job.n, job.best_of),
                job.key,
                job.speculation,
                job.prediction,
                on_start=wait.over,
            )
            streams.append(await stack.enter_async_context(contextlib.aclosing(stream)))
        merged = await stack.enter_async_context(contextlib.aclosing(_merge(streams)))
        ranked: list[list[Tokens]] = [[] for _ in streams]
        scores = _Scores()
        async for prompt_index, emitted in merged:
            tokens = scores.share(prompt_index, emitted)
            if ranks:
                ranked[prompt_index].append(tokens)
            else:
                yield Output(prompt_index * job.n + tokens.choice, tokens)
        for prompt_index, outputs in enumerate(ranked):
            for rank, tokens in best_last(outputs):
                yield Output(prompt_index * job.n + rank if rank < job.n else None, tokens)


class _Scores:
    """Gives every choice a prompt's log-probabilities, which come once, with the first choice's."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[TokenLogprob | None, ...]] = {}  # by index of the prompt
        self._begun: set[tuple[int, int]] = set()

    def share(self, prompt_index: int, tokens: Tokens) -> Tokens:
        """The tokens, with the prompt's log-probabilities if they are their choice's first."""
        scores = self._of.setdefault(prompt_index, tokens.prompt_logprobs)
        if not scores or (prompt_index, tokens.choice) in self._begun:
            return tokens
        self._begun.add((prompt_index, tokens.choice))
        return replace(tokens, prompt_logprobs=scores)


async def _merge(
    streams: Sequence[AsyncGenerator[Tokens, None]],
) -> AsyncGenerator[tuple[int, Tokens], None]:
    """Items of all streams as they come, with the index of their stream."""
    if len(streams) == 1:
        async for tokens in streams[0]:
            yield 0, tokens
        return
    pending = {asyncio.ensure_future(anext(stream)): i for i, stream in enumerate(streams)}
    try:
        while pending:
            done, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                i = pending.pop(task)
                with contextlib.suppress(StopAsyncIteration):
                    tokens = task.result()
                    pending[asyncio.ensure_future(anext(streams[i]))] = i
                    yield i, tokens
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)


def best_last(outputs: Sequence[Tokens]) -> list[tuple[int, Tokens]]:
    """All tokens of one prompt with the rank of their choice: 0 has the highest mean logprob.

    The best come last, so that the last tokens are shown. A choice's tokens keep their order.
    """
    scores: dict[int, list[float]] = {}
    for tokens in outputs:
        scores.setdefault(tokens.choice, []).extend(p.logprob for p in tokens.logprobs)
    order = sorted(scores, key=lambda c: (-sum(scores[c]) / max(1, len(scores[c])), c))
    rank = {choice: i for i, choice in enumerate(order)}
    return sorted(((rank[t.choice], t) for t in outputs), key=lambda pair: -pair[0])


def _nothing(job: Job) -> list[Output]:
    """The answer to `max_tokens: 0`, which needs no pass."""
    outputs: list[Output] = []
    for i, prompt in enumerate(job.prompts):
        stats = Stats(len(prompt), 0, 0, 0, 0, 0, 0.0, 0.0)
        for k in reversed(range(max(job.n, job.best_of))):
            tokens = Tokens(f"{job.id}-{i}", k, (), "", finish="length", stats=stats)
            outputs.append(Output(i * job.n + k if k < job.n else None, tokens))
    return outputs
