"""Signals of its group do not end an engine process, and draining ends waiting requests only."""

import asyncio
import os
import signal

import pytest

from engine.errors import EngineDied
from engine.process import watchdog
from engine.process.client import EngineClient
from tests.engine.fake_engine import ENDLESS, SPIN
from tests.engine.process.conftest import PARAMS, MakeClient, answer, child_pid, exhaust
from tests.engine.process.requests import generate


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_signals_of_the_group_are_left_to_the_front_end(
    clients: MakeClient, number: int
) -> None:
    client = clients()
    starting = asyncio.create_task(client.start())
    while client._process._child is None:
        await asyncio.sleep(0)
    os.kill(child_pid(client), number)  # before it has imported anything
    await starting
    os.kill(child_pid(client), number)
    assert (await answer(client, [5]))[-1].finish == "stop"


async def test_draining_fails_waiting_requests_and_not_running_ones(client: EngineClient) -> None:
    running = generate(client, "runs", [ENDLESS], PARAMS)
    await anext(running)
    spinning = generate(client, "spins", [SPIN], PARAMS)  # the passes of the others wait for it
    waiting = generate(client, "waits", [5], PARAMS)
    client.drain("enough for today")
    with pytest.raises(EngineDied, match="enough for today"):
        await anext(waiting)
    with pytest.raises(EngineDied, match="enough for today"):
        generate(client, "late", [5], PARAMS)
    assert client.num_outstanding == 1
    await spinning.aclose()
    assert (await anext(running)).text == "on"
    await client.close()
    with pytest.raises(EngineDied, match="enough for today") as died:
        await exhaust(running)
    assert died.value.code == "engine_closed"


async def test_draining_fails_requests_that_wait_for_a_restart(
    clients: MakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "BACKOFF_FIRST_S", 60.0)
    client = clients()
    await client.start()
    running = generate(client, "runs", [ENDLESS], PARAMS)
    await anext(running)
    os.kill(child_pid(client), signal.SIGKILL)
    while client.state == "ready":
        await asyncio.sleep(0)
    waiting = asyncio.create_task(client.ready(60))
    await asyncio.sleep(0)
    client.drain("enough for today")
    with pytest.raises(EngineDied, match="enough for today"):
        await waiting
    assert client.num_outstanding == 1
    await client.close()
    with pytest.raises(EngineDied, match="enough for today") as died:
        await exhaust(running)
    assert died.value.code == "engine_closed"


async def test_a_request_for_an_unloaded_model_says_so(client: EngineClient) -> None:
    await client.close()
    with pytest.raises(EngineDied, match="closed, because it was unloaded") as died:
        generate(client, "late", [5], PARAMS)
    assert died.value.code == "engine_closed"
