"""Fixtures that make clients of fake engines, which run in processes but have no model."""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from engine.messages import SamplingParams, Tokens
from engine.process import watchdog
from engine.process.client import EngineClient
from tests.engine import fake_engine
from tests.engine.fake_engine import fake_spec
from tests.engine.process.requests import generate

PARAMS = SamplingParams()

MakeClient = Callable[..., EngineClient]


@pytest.fixture
async def clients(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[MakeClient]:
    """Return a function that makes clients of fake engines; they are closed after the test."""
    monkeypatch.setattr(watchdog, "BACKOFF_FIRST_S", 0.01)
    made: list[EngineClient] = []

    def make(name: str = "fake", folder: Path | str = "", **options: Any) -> EngineClient:
        client = EngineClient(fake_spec(name, folder), target=fake_engine.main, **options)
        made.append(client)
        return client

    yield make
    for client in made:
        await client.close()


@pytest.fixture
async def client(clients: MakeClient) -> EngineClient:
    client = clients()
    await client.start()
    return client


async def answer(client: EngineClient, prompt: list[int], n: int = 1) -> list[Tokens]:
    name = f"request {os.urandom(4).hex()}"
    return [tokens async for tokens in generate(client, name, prompt, PARAMS, n)]


async def exhaust(stream: AsyncGenerator[Tokens, None]) -> None:
    async for _ in stream:
        pass


def child_pid(client: EngineClient) -> int:
    child = client._process._child
    assert child is not None
    return child.pid
