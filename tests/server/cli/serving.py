"""A server with the fake engine that runs in a thread, for commands that talk to one."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from server.http.state import App
from tests.server.conftest import serving


@contextmanager
def served(app: App) -> Iterator[str]:
    """Run a server of `app` within this block, and yield its URL."""
    urls: list[str] = []
    is_ready, end = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with serving(app) as url:
            urls.append(url)
            is_ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    try:
        assert is_ready.wait(30)
        yield urls[0]
    finally:
        loops[0].call_soon_threadsafe(end.set)
        thread.join()
