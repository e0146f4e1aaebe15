"""Requests to the client of an engine."""

from collections.abc import AsyncGenerator, Sequence
from typing import Any

from engine.messages import Generate, SamplingParams, Tokens
from engine.process.client import EngineClient


def generate(
    client: EngineClient,
    name: str,
    prompt: Sequence[int],
    params: SamplingParams,
    n: int = 1,
    **callbacks: Any,
) -> AsyncGenerator[Tokens, None]:
    """Return the stream of a request with this id. `callbacks` are those of `EngineClient.run`."""
    return client.run(Generate(name, tuple(prompt), params, n), **callbacks)
