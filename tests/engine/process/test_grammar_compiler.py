"""Grammars are compiled in a thread of the engine process, while passes of other requests run."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial

import pytest

from engine.errors import EngineDied, RequestError
from engine.messages import Tokens
from engine.process.client import EngineClient
from tests.engine.fake_engine import RAISE, REFUSE
from tests.engine.process.conftest import PARAMS, answer, exhaust
from tests.engine.process.requests import generate

# The fake engine compiles this grammar until a pass has run.
LONG = replace(PARAMS, grammar="long")


async def begin(
    client: EngineClient, name: str, prompt: list[int], n: int = 1
) -> AsyncGenerator[Tokens, None]:
    """Return the stream of a request whose grammar is being compiled."""
    begun = asyncio.Event()
    stream = generate(client, name, prompt, LONG, n, on_prompt=lambda _: begun.set())
    await begun.wait()
    return stream


async def test_passes_of_others_run_while_a_grammar_is_compiled(client: EngineClient) -> None:
    stream = await begin(client, "compiled", [5, 6], n=2)
    assert (await answer(client, [7]))[-1].finish == "stop", "it did not wait for the grammar"
    got = [(tokens.choice, tokens.ids[0]) async for tokens in stream]
    assert got == [(0, 5), (1, 5), (0, 6)]


async def test_requests_join_the_queue_in_the_order_of_their_grammars(client: EngineClient) -> None:
    streams = [await begin(client, "first", [5])]
    started: list[str] = []

    def note(name: str, _done: int) -> None:
        started.append(name)

    for name in ("second", "third"):
        streams.append(generate(client, name, [6], LONG, on_prompt=partial(note, name)))
    await answer(client, [7])
    for stream in streams:
        await exhaust(stream)
    assert list(dict.fromkeys(started)) == ["second", "third"]


async def test_a_client_may_leave_while_its_grammar_is_compiled(client: EngineClient) -> None:
    leaving = await begin(client, "leaves", [RAISE])  # its pass would end the engine
    waiting = generate(client, "leaves too", [RAISE], LONG)
    await leaving.aclose()
    await waiting.aclose()
    assert client.num_outstanding == 0
    for _ in range(3):
        assert (await answer(client, [7]))[-1].finish == "stop"
    assert [tokens.ids async for tokens in generate(client, "after", [8], LONG)] == [(8,)]


@pytest.mark.parametrize(
    ("grammar", "prompt", "code"),
    [("unusable", [5], "invalid_grammar"), ("usable", [REFUSE], "refused")],
)
async def test_a_refusal_after_compiling_reaches_the_caller(
    client: EngineClient, grammar: str, prompt: list[int], code: str
) -> None:
    with pytest.raises(RequestError) as refused:
        await exhaust(generate(client, "r", prompt, replace(PARAMS, grammar=grammar)))
    assert refused.value.code == code and client.num_outstanding == 0
    assert (await answer(client, [5]))[-1].finish == "stop"


async def test_a_bug_in_the_compiler_ends_the_engine_with_its_reason(client: EngineClient) -> None:
    with pytest.raises(RequestError, match="no such grammar"):
        await exhaust(generate(client, "r", [5], replace(PARAMS, grammar="bug")))
    await client.ready(timeout=240)


async def test_closing_does_not_wait_for_a_grammar(client: EngineClient) -> None:
    stream = await begin(client, "r", [5])
    await client.close()
    with pytest.raises(EngineDied):
        await exhaust(stream)
