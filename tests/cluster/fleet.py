"""A head and its peers for tests: servers with fake engines, and what they know of each other."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import httpx

from cluster import placement
from cluster.address import Address
from cluster.peer import PeerClient
from cluster.peers import Peers
from engine.messages import PassStats
from engine.spec import ModelSpec, TargetSpec
from server.config.registry import ModelEntry, Registry
from server.config.settings import Settings
from server.http.app import create_app
from server.http.auth import ApiKeys
from server.http.measure import client_trace
from server.http.state import App
from server.traces.spans import Traces
from tests.server.conftest import client_of, serving
from tests.server.fake_engine import FakeEngines
from tests.server.fake_text import FakeText

FAST_MS, SLOW_MS = 20.0, 4000.0  # of a pass


def new_app(
    engines: FakeEngines,
    peers: Peers | None = None,
    keys: Sequence[str] = (),
    traces: Traces | None = None,
    **settings: Any,
) -> App:
    entry = ModelEntry("main", ModelSpec("main", TargetSpec("nowhere")), 1700000000)
    return create_app(
        Settings(**settings),
        Registry([entry], "main", strict=False),
        engines,
        keys=ApiKeys(keys),
        text=FakeText(),
        peers=peers,
        ended=(lambda _: None) if traces is None else traces.record,
        trace=client_trace if traces is None else traces.headers,
    )


async def load(app: App, engines: FakeEngines, pass_ms: float) -> None:
    """Load the model, and let its engine report passes of this length."""
    await app.shared.models.preload(app.shared.registry.find(None))
    stats = PassStats(
        rows=64, sequences=1, accepted=1, draft_ms=0.0, pass_ms=pass_ms, link_gbps=1.0
    )
    engines.engine.on_pass(stats)


@dataclass
class Head:
    """A server with peers, and its client."""

    client: httpx.AsyncClient
    engines: FakeEngines
    peers: Peers
    app: App

    async def status(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.client.get("/v1/status")).json()["peers"]
        return found

    async def until(self, state: str, note: str = "") -> dict[str, Any]:
        """Wait until the first peer has this state and a note with this text; return its status."""
        async with asyncio.timeout(10):
            while True:
                peer = (await self.status())[0]
                if peer["state"] == state and note in peer["note"]:
                    return peer
                await self.peers.wait_for_report(0.02)


@dataclass
class Far:
    """A peer: a server of its own, with a fake engine."""

    url: str
    engines: FakeEngines
    app: App


@asynccontextmanager
async def far(
    engines: FakeEngines,
    pass_ms: float = FAST_MS,
    *,
    peers_of: Sequence[str] = (),
    keys: Sequence[str] = (),
    traces: Traces | None = None,
) -> AsyncIterator[Far]:
    """Serve a peer on a port of its own.

    Args:
        peers_of: the URLs of its own peers.
    """
    peers = Peers([Address(url) for url in peers_of]) if peers_of else None
    app = new_app(engines, peers, keys, traces)
    async with serving(app) as url:
        await load(app, engines, pass_ms)
        yield Far(url, engines, app)


@asynccontextmanager
async def head(
    *urls: str,
    engines: FakeEngines | None = None,
    pass_ms: float = SLOW_MS,
    transport: httpx.AsyncBaseTransport | None = None,
    key: str = "",
    **settings: Any,
) -> AsyncIterator[Head]:
    """Serve a head, which is slower than its peers if nothing else is said."""
    own = engines or FakeEngines()
    addresses = [Address(url, key) for url in urls]
    peers = Peers(addresses, lambda address: PeerClient(address, transport))
    app = new_app(own, peers, **settings)
    # On a busy machine, reports may be late by as much as makes them stale.
    with patch.object(placement, "STALE_SECONDS", 600.0):
        async with client_of(app) as client:
            await load(app, own, pass_ms)
            yield Head(client, own, peers, app)
