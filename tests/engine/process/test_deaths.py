"""Ways in which a process dies, and moments: its streams go on after each."""

import asyncio
import os
import pickle
import signal
import socket
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from engine.errors import RequestError
from engine.messages import Tokens
from engine.process import watchdog
from engine.process.client import EngineClient
from engine.process.pipe import PipeReader
from tests.engine.fake_engine import DIES_ONCE, ENDLESS, EXHAUST, STOPS_ONCE
from tests.engine.process.conftest import PARAMS, MakeClient, child_pid, exhaust
from tests.engine.process.requests import generate

Stream = AsyncGenerator[Tokens, None]
LONG = list(range(1, 60))


async def rest(stream: Stream) -> list[int]:
    return [token async for tokens in stream for token in tokens.ids]


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV, signal.SIGSTOP], ids=str
)
async def test_streams_go_on_however_the_process_ends(
    client: EngineClient, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "MIN_SILENCE_S", 0.3)
    monkeypatch.setattr(watchdog, "FIRST_PASS_SILENCE_S", 0.3)
    streams = [generate(client, f"{i}", [ENDLESS], PARAMS) for i in range(2)]
    for stream in streams:
        await anext(stream)
    before = child_pid(client)
    os.kill(before, number)
    while client.state == "ready":
        await asyncio.sleep(0.01)
    await client.ready(60)
    for stream in streams:
        for _ in range(1000):  # tokens of both processes
            await anext(stream)
        await stream.aclose()
    assert child_pid(client) != before


async def test_a_request_that_takes_all_memory_is_refused_and_the_others_go_on(
    client: EngineClient,
) -> None:
    other = generate(client, "other", LONG, PARAMS)
    greedy = generate(client, "greedy", [EXHAUST, 5], PARAMS)
    with pytest.raises(RequestError, match="died twice"):
        await exhaust(greedy)
    assert await rest(other) == LONG


@pytest.mark.parametrize("name", [DIES_ONCE, STOPS_ONCE])
async def test_a_load_that_fails_after_a_death_is_repeated(
    clients: MakeClient, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = clients(name, tmp_path)
    await client.start()
    monkeypatch.setattr(watchdog, "LOAD_SILENCE_S", 1.5)
    stream = generate(client, "endless", [ENDLESS], PARAMS)
    await anext(stream)
    os.kill(child_pid(client), signal.SIGKILL)
    while client.state == "ready":
        await asyncio.sleep(0)
    await client.ready(60)
    await anext(stream)
    assert int((tmp_path / "loads").read_text()) >= 3
    await stream.aclose()


async def test_a_process_may_die_as_soon_as_it_is_ready(client: EngineClient) -> None:
    stream = generate(client, "r", [ENDLESS], PARAMS)
    other = generate(client, "other", [ENDLESS], PARAMS)
    await anext(stream)
    await anext(other)
    for _ in range(3):
        os.kill(child_pid(client), signal.SIGKILL)
        while client.state == "ready":
            await asyncio.sleep(0)
        await client.ready(60)
    for _ in range(100):
        await anext(stream)
        await anext(other)
    await stream.aclose()
    await other.aclose()


@pytest.mark.parametrize("length", [1, 3, 4, 40])
def test_a_message_that_was_cut_off_is_left_out(length: int) -> None:
    """The process may die while it writes."""
    ours, theirs = socket.socketpair()
    payload = pickle.dumps("whole")
    frame = len(payload).to_bytes(4, "big") + payload
    cut = (100).to_bytes(4, "big") + bytes(100)
    theirs.sendall(frame + cut[:length])
    theirs.close()
    with ours:
        reader = PipeReader(ours)  # type: ignore[arg-type]  # only its file descriptor is used
        assert list(reader.read()) == ["whole"]
        assert reader.at_end
        reader.close()
