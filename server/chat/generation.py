"""The generation of all choices of all prompts of one request, merged into one stream."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from engine.messages import (
    AUTO,
    AnswerFormat,
    Generate,
    ModelInfo,
    SamplingParams,
    Speculation,
    Stats,
    Tail,
    TokenLogprob,
    Tokens,
)
from server.metrics.usage import Totals
from server.metrics.wait_status import Wait, in_line
from server.models.loaded_model import LoadedModel


@dataclass(frozen=True)
class Job:
    """The work that one HTTP request gives to the engine."""

    id: str  # the id of the answer
    prompts: Sequence[Sequence[int]]
    params: SamplingParams
    n: int = 1  # choices shown per prompt
    best_of: int = 0  # choices generated per prompt, if more than n
    key: str = ""  # the name of the API key
    speculation: Speculation = AUTO
    prediction: Sequence[int] = ()  # tokens that the client expects
    answer_format: AnswerFormat | None = None  # None: stop strings count in the whole text
    # By index of the choice in the answer, the tokens that the client has, and that are not shown.
    continued: Mapping[int, Sequence[int]] = field(default_factory=dict)
    traced_nodes: int = 0  # of each prompt, as in `Generate`
    fingerprint: str | None = None  # the one that its engine must have

    @property
    def num_choices(self) -> int:
        """Return the number of choices that are generated, also those that are not shown."""
        return len(self.prompts) * max(self.n, self.best_of)

    def fingerprint_on(self, info: ModelInfo) -> str | None:
        """Return the fingerprint that the engines of its streams must have; None: any.

        An answer has one fingerprint, so several prompts need engines that compute the same bits;
        and so do tokens that the client has from an engine which it does not name.

        Args:
            info: the engine of this server.
        """
        is_bound = bool(self.continued) or len(self.prompts) > 1
        return self.fingerprint or (info.fingerprint if is_bound else None)

    def continued_of(self, prompt: int) -> dict[int, Sequence[int]]:
        """Return the tokens that the client has of the choices of one prompt, by choice."""
        first = prompt * self.n
        given = {choice: self.continued.get(first + choice) for choice in range(self.n)}
        return {choice: ids for choice, ids in given.items() if ids is not None}


@dataclass(frozen=True)
class Output:
    """The tokens that one pass emitted for one choice."""

    index: int | None  # of the choice in the answer; None: it is counted, but not shown
    tokens: Tokens


async def generate(
    model: LoadedModel, job: Job, http_id: str, wait: Wait, totals: Totals
) -> AsyncGenerator[Output, None]:
    """Run a job, and yield its outputs. Closing the generator aborts what still runs.

    Meanwhile `wait` reports the place of the job's first prompt in the queue, and then how far the
    prompts are; `totals` gets how much of each is in the cache. `http_id` names the HTTP request.

    Raise the `EngineError` of the first prompt that is refused or fails.
    """
    if job.params.max_tokens == 0 and job.params.prompt_logprobs is None:
        for output in _empty_outputs(job):
            yield output
        return
    wait.set_reason(lambda: in_line("waiting", model.engine.position(f"{job.id}-0")))
    is_ranked, done = job.best_of > job.n, [0] * len(job.prompts)

    def note_prompt(index: int, num_tokens: int) -> None:
        totals.note_begun(index, num_tokens, len(job.prompts[index]))
        done[index] = num_tokens
        wait.note_prompt(sum(done), sum(map(len, job.prompts)))

    def note_lost(index: int) -> None:
        totals.note_lost(index)
        wait.note_lost()

    async with contextlib.AsyncExitStack() as stack:
        streams: list[AsyncGenerator[Tokens, None]] = []
        params = replace(job.params, logprobs=job.params.logprobs or 0) if is_ranked else job.params
        for i in range(len(job.prompts)):
            stream = model.run(
                _message(job, i, params, http_id),
                fingerprint=job.fingerprint_on(model.info),
                first_choice=i * job.n,
                on_prompt=functools.partial(note_prompt, i),
                on_lost=functools.partial(note_lost, i),
                on_tokens=totals.note_generated,
            )
            streams.append(await stack.enter_async_context(contextlib.aclosing(stream)))
            await asyncio.sleep(0)  # the checks of a long prompt's ids take milliseconds
        merged = await stack.enter_async_context(contextlib.aclosing(_merge_streams(streams)))
        held_back: list[list[Tokens]] = [[] for _ in streams]  # until all choices can be ranked
        prompt_logprobs = _PromptLogprobs()
        async for prompt_index, emitted in merged:
            tokens = prompt_logprobs.attach(prompt_index, emitted)
            if is_ranked:
                held_back[prompt_index].append(tokens)
            else:
                yield Output(prompt_index * job.n + tokens.choice, tokens)
        for prompt_index, outputs in enumerate(held_back):
            for rank, tokens in _rank_choices(outputs):
                yield Output(prompt_index * job.n + rank if rank < job.n else None, tokens)


def _message(job: Job, index: int, params: SamplingParams, http_id: str) -> Generate:
    """Return the engine's message for one prompt of a job."""
    given, n = job.continued_of(index), max(job.n, job.best_of)
    tails = [Tail(choice, tuple(given.get(choice, ())), is_read=False) for choice in range(n)]
    is_continued = any(given.values())
    return Generate(
        f"{job.id}-{index}",
        tuple(job.prompts[index]),
        params,
        n,
        job.key,
        job.speculation,
        tuple(job.prediction),
        job.answer_format,
        emitted=tuple(tails) if is_continued else (),
        is_continued=is_continued,
        traced_nodes=job.traced_nodes,
        http_id=http_id,
    )


class _PromptLogprobs:
    """The log-probabilities of prompts, which the engine sends once, with the first choice."""

    def __init__(self) -> None:
        self._by_prompt: dict[int, tuple[TokenLogprob | None, ...]] = {}  # by index of the prompt
        self._attached: set[tuple[int, int]] = set()  # (index of the prompt, choice)

    def attach(self, prompt_index: int, tokens: Tokens) -> Tokens:
        """Return `tokens`; the first ones of a choice get the prompt's log-probabilities."""
        logprobs = self._by_prompt.setdefault(prompt_index, tokens.prompt_logprobs)
        if not logprobs or (prompt_index, tokens.choice) in self._attached:
            return tokens
        self._attached.add((prompt_index, tokens.choice))
        return replace(tokens, prompt_logprobs=logprobs)


async def _merge_streams(
    streams: Sequence[AsyncGenerator[Tokens, None]],
) -> AsyncGenerator[tuple[int, Tokens], None]:
    """Yield the items of all streams as they arrive, each with the index of its stream."""
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


def _rank_choices(outputs: Sequence[Tokens]) -> list[tuple[int, Tokens]]:
    """Return the tokens of one prompt with the rank of their choice, the best choice last.

    Rank 0 has the highest mean log-probability. It comes last, because the costs come with the last
    tokens, which must be shown. The tokens of one choice keep their order.
    """
    scores: dict[int, list[float]] = {}
    for tokens in outputs:
        scores.setdefault(tokens.choice, []).extend(p.logprob for p in tokens.logprobs)
    order = sorted(scores, key=lambda c: (-sum(scores[c]) / max(1, len(scores[c])), c))
    rank = {choice: i for i, choice in enumerate(order)}
    return sorted(((rank[t.choice], t) for t in outputs), key=lambda pair: -pair[0])


def _empty_outputs(job: Job) -> list[Output]:
    """Return the outputs of a job with `max_tokens: 0`, which needs no pass."""
    outputs: list[Output] = []
    for i, prompt in enumerate(job.prompts):
        stats = Stats(
            prompt_tokens=len(prompt),
            cached_tokens=0,
            completion_tokens=0,
            passes=0,
            drafted=0,
            accepted=0,
            prompt_ms=0.0,
            predicted_ms=0.0,
        )
        for k in reversed(range(max(job.n, job.best_of))):
            tokens = Tokens(f"{job.id}-{i}", k, (), "", finish="length", stats=stats)
            outputs.append(Output(i * job.n + k if k < job.n else None, tokens))
    return outputs
