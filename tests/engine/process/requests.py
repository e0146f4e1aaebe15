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
    """Send a request to an engine, and return the stream of its tokens.

    Args:
        name: the id of the request.
        callbacks: keyword arguments of `EngineClient.run`.
    """
    return client.run(Generate(name, tuple(prompt), params, n), **callbacks)
