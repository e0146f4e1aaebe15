"""Limits of memory on their way to the engine process, and its reports of weights that moved."""

import asyncio
import os
import signal

from engine.moves import LimitMemory, Replanned
from engine.process.callbacks import EngineCallbacks
from tests.engine.process.conftest import MakeClient, answer, child_pid


async def test_limits_of_memory_hold_also_after_a_restart(clients: MakeClient) -> None:
    moves: list[Replanned] = []
    moved = asyncio.Event()

    def note(report: Replanned) -> None:
        moves.append(report)
        moved.set()

    client = clients(callbacks=EngineCallbacks(on_replan=note))
    await client.start()
    client.limit_memory(LimitMemory(device=5))
    await asyncio.wait_for(moved.wait(), 60)
    assert [report.reason for report in moves] == ["device"]
    assert client.info is not None
    assert (client.info.plan, client.info.tiers) == ("all on disk", (("disk", 3),))
    moved.clear()
    os.kill(child_pid(client), signal.SIGKILL)
    await asyncio.wait_for(moved.wait(), 60)
    assert client.state == "ready" and client.info.plan == "all on disk"
    moved.clear()
    client.limit_memory(LimitMemory())
    await asyncio.wait_for(moved.wait(), 60)
    assert moves[-1].reason == "freed" and client.info.tier_bytes == (("resident", 300),)
    assert (await answer(client, [5]))[-1].finish == "stop"
