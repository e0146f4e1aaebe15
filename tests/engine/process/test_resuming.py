"""Streams whose process dies: they go on in the next one, and no other request suffers."""

import asyncio
import os
import signal
import tracemalloc
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from engine.errors import EngineDied, QueueFull, RequestError
from engine.messages import Generate, SamplingParams, Tail, Tokens
from engine.pass_trace import DraftedNodes, PassTrace
from engine.process.callbacks import EngineCallbacks
from engine.process.client import EngineClient
from engine.process.suspects import GOOD_TOKENS
from engine.process.token_stream import MAX_UNREAD, EventQueue, RunningRequest
from tests.engine.fake_engine import (
    CHANGING,
    ENDLESS,
    KILL,
    KILL_LATER,
    KILL_OTHERS,
    ONCE,
    SPIN,
)
from tests.engine.process.conftest import PARAMS, MakeClient, child_pid, exhaust
from tests.engine.process.requests import generate

Stream = AsyncGenerator[Tokens, None]
LONG = list(range(1, 60))


async def kill(client: EngineClient) -> None:
    """Kill the process, and return when the client has noticed it."""
    os.kill(child_pid(client), signal.SIGKILL)
    while client.state == "ready":
        await asyncio.sleep(0)


async def rest(stream: Stream) -> dict[int, list[int]]:
    """Return the remaining tokens of each choice."""
    got: dict[int, list[int]] = {}
    async for tokens in stream:
        got.setdefault(tokens.choice, []).extend(tokens.ids)
    return got


async def test_streams_go_on_with_the_tokens_that_are_left(clients: MakeClient) -> None:
    resumed: list[None] = []
    lost: list[str] = []
    client = clients(callbacks=EngineCallbacks(on_resume=lambda: resumed.append(None)))
    await client.start()
    stuck = generate(client, "stuck", [SPIN], PARAMS)  # the others have no second pass before it
    streams = [
        generate(client, name, LONG[:length], PARAMS, n, on_lost=lambda: lost.append("lost"))
        for name, length, n in (("one", 9, 1), ("three", 5, 3), ("done", 1, 1))
    ]
    await asyncio.sleep(0.05)
    await kill(client)
    await stuck.aclose()
    got = [await rest(stream) for stream in streams]
    assert got == [
        {0: LONG[:9]},
        {0: LONG[:5], 1: LONG[:4], 2: LONG[:3]},
        {0: LONG[:1]},
    ]
    assert len(lost) == len(resumed) == 3
    assert client.num_outstanding == 0


@pytest.mark.parametrize("kills", [1, 2])
async def test_no_token_is_lost_or_sent_twice(client: EngineClient, kills: int) -> None:
    endless = generate(client, "endless", [ENDLESS], PARAMS)
    stream = generate(client, "r", LONG, PARAMS, 2)
    got: dict[int, list[int]] = {0: [], 1: []}
    for _ in range(kills):
        for _ in range(GOOD_TOKENS):  # then the kill before does not count any more
            tokens = await anext(stream)
            got[tokens.choice] += tokens.ids
        await anext(endless)
        await kill(client)
    for choice, ids in (await rest(stream)).items():
        got[choice] += ids
    assert got == {0: LONG, 1: LONG[:-1]}
    await endless.aclose()


def tokens_of(choice: int, ids: tuple[int, ...], finish: str | None = None) -> Tokens:
    return Tokens("r", choice, ids, "", finish=finish)


@pytest.mark.parametrize(
    ("sent", "tails"),
    [
        ([], ()),
        ([(0, (5,), None)], (Tail(0, (5,)), Tail(1, ()), Tail(2, ()))),
        ([(0, (5,), "stop")], (Tail(1, ()), Tail(2, ()))),
        (
            [(1, (5, 6), None), (0, (7,), "stop"), (1, (8,), None)],
            (Tail(1, (5, 6, 8)), Tail(2, ())),
        ),
    ],
)
async def test_a_request_is_sent_again_with_the_tails_of_unfinished_choices(
    sent: list[tuple[int, tuple[int, ...], str | None]], tails: tuple[Tail, ...]
) -> None:
    message = Generate("r", (3, 4), PARAMS, 3)
    request = RunningRequest(message, asyncio.Queue(), None, None, None, max_tokens=62)
    assert request.next_message("us-1") == message
    for own in sent:
        request.deliver(tokens_of(*own))
    request.lose()
    assert request.can_run_on("us-1") and request.can_run_on("us-2") == (not tails)
    params = replace(PARAMS, max_tokens=62 if tails else None)
    assert request.next_message("us-1") == replace(
        message, request_id="r.2", params=params, emitted=tails
    )


async def test_tokens_that_a_client_gave_are_replayed_until_they_are_read() -> None:
    given = (Tail(0, (5,), is_read=False), Tail(1, (), is_read=False), Tail(2, (6,), is_read=False))
    message = Generate("r", (3, 4), PARAMS, 3, emitted=given, is_continued=True)
    request = RunningRequest(message, asyncio.Queue(), None, None, None, max_tokens=62)
    assert request.can_run_on("us-1")
    assert request.next_message("us-1").emitted == given
    assert not request.can_run_on("us-2"), "the first engine had given these tokens"
    request.deliver(replace(tokens_of(0, (5,)), is_replayed=True))
    request.deliver(tokens_of(0, (7,)))
    request.deliver(tokens_of(1, (8,)))
    assert request.num_new == 2
    request.lose()
    again = request.next_message("us-1")
    assert again.emitted == (Tail(0, (5, 7)), Tail(1, (8,)), given[2])
    assert again.is_continued
    request.deliver(replace(tokens_of(2, (6,), "stop"), is_replayed=True))
    assert request.num_unfinished == 2


async def test_an_answer_does_not_go_on_in_an_engine_with_another_fingerprint(
    clients: MakeClient,
) -> None:
    client = clients(CHANGING)
    before = await client.start()
    begun = generate(client, "begun", [ENDLESS], PARAMS)
    await anext(begun)
    new = generate(client, "new", LONG, PARAMS)
    await kill(client)
    after = await client.ready(60)
    assert after.fingerprint != before.fingerprint
    with pytest.raises(EngineDied) as caught:
        await exhaust(begun)
    message, code = str(caught.value), caught.value.code
    assert code == "engine_died"
    assert before.fingerprint in message and after.fingerprint in message
    assert "Send the request again" in message
    assert await rest(new) == {0: LONG}, "nothing was sent yet"
    assert client.num_outstanding == 0


async def test_lost_requests_go_first_and_past_the_limit_of_the_queue(clients: MakeClient) -> None:
    order: list[str] = []

    def note(name: str, done: int) -> None:
        order.append(name)

    client = clients(max_queue=2)
    await client.start()
    old = [
        generate(client, name, [ENDLESS], PARAMS, on_prompt=partial(note, name))
        for name in ("old 0", "old 1")
    ]
    for stream in old:
        await anext(stream)
    order.clear()
    await kill(client)
    await client.ready(60)
    with pytest.raises(QueueFull, match="2 requests"):
        generate(client, "new", [5], PARAMS)
    await old[0].aclose()
    new = generate(client, "new", [5], PARAMS, on_prompt=partial(note, "new"))
    assert await rest(new) == {0: [5]}
    assert order.index("old 1") < order.index("new")
    await old[1].aclose()


async def test_of_requests_that_run_alone_the_shortest_goes_first(clients: MakeClient) -> None:
    order: list[str] = []

    def note(name: str, done: int) -> None:
        order.append(name)

    client = clients()
    await client.start()
    lengths = {"long": 30, "middle": 9, "short": 2}  # those that came first have sent most
    streams = [
        generate(client, name, [ENDLESS] * length, PARAMS, on_prompt=partial(note, name))
        for name, length in lengths.items()
    ]
    for stream in streams:
        await anext(stream)
    await kill(client)
    order.clear()
    while len(set(order)) < len(lengths):
        await asyncio.sleep(0.01)
    assert [*dict.fromkeys(order)] == ["short", "middle", "long"]
    for stream in streams:
        await stream.aclose()


async def test_the_client_of_a_lost_request_may_leave(client: EngineClient) -> None:
    streams = [generate(client, f"{i}", [ENDLESS], PARAMS) for i in range(3)]
    for stream in streams:
        await anext(stream)
    await kill(client)
    await streams[0].aclose()
    await client.ready(60)
    await streams[1].aclose()  # while it runs alone, or waits for its turn
    for _ in range(3):
        assert (await anext(streams[2])).text == "on"
    assert client.num_outstanding == 1


@pytest.mark.parametrize("poison", [[KILL, 5], [KILL_LATER, 5, 6, 7]])
async def test_a_poison_is_refused_and_the_others_go_on(
    client: EngineClient, poison: list[int]
) -> None:
    others = [generate(client, f"{i}", LONG, PARAMS) for i in range(4)]
    bad = generate(client, "bad", poison, SamplingParams(seed=1))
    more = [generate(client, f"more {i}", LONG, PARAMS) for i in range(3)]
    with pytest.raises(RequestError, match="died twice") as refused:
        await exhaust(bad)
    assert refused.value.code == "request_failed"
    for stream in (*others, *more):
        assert await rest(stream) == {0: LONG}
    with pytest.raises(RequestError, match="died twice"):
        generate(client, "again", poison, SamplingParams(seed=2))


async def test_a_request_that_survives_alone_is_not_refused(client: EngineClient) -> None:
    fragile = generate(client, "fragile", [KILL_OTHERS, 5, 6], PARAMS)
    other = generate(client, "other", LONG, PARAMS)
    assert await rest(fragile) == {0: [KILL_OTHERS, 5, 6]}
    assert await rest(other) == {0: LONG}


async def test_streams_end_with_the_death_if_the_model_cannot_be_loaded_again(
    clients: MakeClient, tmp_path: Path
) -> None:
    client = clients(ONCE, tmp_path)
    await client.start()
    stream = generate(client, "r", [ENDLESS], PARAMS)
    await anext(stream)
    await kill(client)
    with pytest.raises(EngineDied, match="SIGKILL") as died:
        await exhaust(stream)
    assert died.value.code == "engine_died"
    assert (client.state, client.num_outstanding) == ("failed", 0)


async def test_a_request_that_comes_while_the_process_restarts_is_answered(
    clients: MakeClient,
) -> None:
    resumed: list[None] = []
    client = clients(callbacks=EngineCallbacks(on_resume=lambda: resumed.append(None)))
    await client.start()
    running = generate(client, "running", [ENDLESS], PARAMS)
    await anext(running)
    await kill(client)
    assert client.state == "restarting"
    assert await rest(generate(client, "new", LONG, PARAMS, 2)) == {0: LONG, 1: LONG[:-1]}
    assert len(resumed) == 1, "only the running one has been resumed"
    await running.aclose()


async def test_closing_during_a_restart_ends_the_streams(client: EngineClient) -> None:
    stream = generate(client, "r", [ENDLESS], PARAMS)
    await anext(stream)
    await kill(client)
    await client.close()
    with pytest.raises(EngineDied) as died:
        await exhaust(stream)
    assert died.value.code == "engine_closed"
    assert client.num_outstanding == 0


@pytest.mark.parametrize("is_continued", [False, True])
async def test_a_kept_token_takes_eight_bytes(is_continued: bool) -> None:
    ids = tuple(range(1_000, 21_000))
    tails = (Tail(0, ids, is_read=False),) if is_continued else ()
    message = Generate("r", (1, 2), PARAMS, emitted=tails, is_continued=is_continued)
    tracemalloc.start()
    try:
        request = RunningRequest(message, asyncio.Queue(), None, None, None, len(ids))
        for first in () if is_continued else range(0, len(ids), 10):
            request.deliver(Tokens("r", 0, tuple(ids[first : first + 10]), "text"))
            request.events.get_nowait()
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert request.next_message("f").emitted == (Tail(0, ids, is_read=not is_continued),)
    assert kept < 9 * len(ids)
    assert not request.message.emitted, "each of these would take 36 bytes more"


async def test_a_client_that_reads_slowly_gets_no_rejected_nodes() -> None:
    nodes = DraftedNodes(
        (-1, 0, 0), (5, 6, 7), ("a", "a", "b"), (-0.1, -0.2, -0.3), (True, True, False)
    )
    trace = PassTrace(1, 3, 4, 4, 1, 1.0, 0.0, 0.0, 0, nodes)
    events: EventQueue = asyncio.Queue()
    message = Generate("r", (1,), SamplingParams(), traced_nodes=99)
    running = RunningRequest(message, events, None, None, None, 99)
    for _ in range(MAX_UNREAD + 1):
        running.deliver(Tokens("r", 0, (5, 6, 8), "", traces=(trace,)))
    got = [events.get_nowait() for _ in range(MAX_UNREAD + 1)]
    assert all(isinstance(own, Tokens) and own.traces == (trace,) for own in got[:-1])
    last = got[-1]
    assert isinstance(last, Tokens)
    assert (last.traces[0].nodes.tokens, last.traces[0].nodes_left_out) == ((5, 6), 1)
