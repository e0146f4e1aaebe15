"""The request that a log line concerns, known wherever its task runs."""

import asyncio
import contextvars
from collections.abc import Coroutine
from contextvars import ContextVar
from typing import Any, TypeVar

T = TypeVar("T")

current_request: ContextVar[str] = ContextVar("current_request", default="")
"""The id of the request that the running task answers; "" where there is none."""


def create_background_task(work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
    """Start a task that outlives the request which causes it: its log lines name no request.

    A task takes the context of its creator, and so do all callbacks that it registers.
    """
    return asyncio.create_task(work, name=name, context=contextvars.Context())
