"""Tests of connections to a peer that are reset, closed or silent in the middle of a stream."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from cluster import peer
from cluster.wire import Emitted, Progress, line_of, reports
from tests.cluster.fleet import head
from tests.cluster.test_bad_peers import GOOD, REPORT
from tests.cluster.test_peers import CHAT, streamed, text_of

LINES = line_of(Progress(1)) + line_of(Emitted(GOOD))
CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class CutPeer:
    """A peer that begins an answer, and then cuts the connection in one way."""

    def __init__(self, how: str) -> None:
        self._how = how
        self.cut_at: float | None = None
        self._answering: list[asyncio.Task[None]] = []

    def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection in a task of its own."""
        self._answering.append(asyncio.create_task(self._serve(reader, writer)))

    async def wait_closed(self) -> None:
        """Wait until all connections have ended."""
        await asyncio.gather(*self._answering)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # the head hangs up in the middle of a line
            await self._answer(reader, writer)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await reader.readline()) != b"":
            if request.startswith(b"GET"):
                await reader.readuntil(b"\r\n\r\n")
                report = reports.dump_json(REPORT)
                size = f"HTTP/1.1 200 OK\r\nContent-Length: {len(report)}\r\n\r\n"
                writer.write(size.encode() + report)
            elif request.startswith(b"POST"):
                writer.write(f"{CHUNKED}{len(LINES):x}\r\n".encode() + LINES + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.1)  # until the line has been read
                self.cut_at = time.perf_counter()
                if self._how == "silent":
                    await reader.read()  # until the head hangs up
                elif self._how == "reset":
                    writer.transport.abort()
                return


@asynccontextmanager
async def listening(own: CutPeer) -> AsyncIterator[str]:
    server = await asyncio.start_server(own.connected, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await own.wait_closed()


@pytest.mark.parametrize("how", ["reset", "closed", "silent"])
async def test_a_stream_goes_on_here_after_a_cut(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut that the system sees is known at once, long before the silence would be."""
    monkeypatch.setattr(peer, "SILENCE_SECONDS", 0.3 if how == "silent" else 60.0)
    own = CutPeer(how)
    async with listening(own) as url, head(url) as ours:
        await ours.until("ready")
        async with asyncio.timeout(20):
            asking = asyncio.create_task(streamed(ours, CHAT))
            await ours.engines.engine.request_started.wait()
            assert own.cut_at is not None
            print(f"{how}: placed again after {1e3 * (time.perf_counter() - own.cut_at):.1f} ms")
            text = text_of(await asking)
        (request,) = ours.engines.engine.requests
        assert request.emitted[0].ids == GOOD.ids and text[0].startswith("H")
        assert (await ours.status())[0]["lost"] == 1 and ours.peers.num_moved == 1
