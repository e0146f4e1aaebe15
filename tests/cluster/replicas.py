"""A front end without an engine, and replicas with fake engines, without Ray."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import httpx

from cluster.answering import Frame, Observe, no_observer
from cluster.peer import PeerLost
from cluster.remote import ANY, Deployed, RemoteEngine, Replicas
from cluster.replica import Replica, Told
from cluster.wire import Ask
from engine import __version__
from engine.messages import ModelInfo, PassStats
from engine.spec import ModelSpec, TargetSpec
from server.config.registry import ModelEntry, Registry
from server.config.settings import Settings
from server.http.app import create_app
from server.http.measure import client_trace
from server.http.state import App
from server.traces.spans import Traces
from tests.server.conftest import client_of
from tests.server.fake_engine import FakeEngines, Script
from tests.server.fake_text import FakeText

SPEC = ModelSpec("main", TargetSpec("nowhere"))
PASS = PassStats(rows=64, sequences=1, accepted=1, draft_ms=0.0, pass_ms=20.0, link_gbps=1.0)


@dataclass
class Own:
    """One replica of a test, and its fake engine."""

    replica: Replica
    engines: FakeEngines
    dead: asyncio.Event = field(default_factory=asyncio.Event)
    is_silent: bool = False
    is_draining: bool = False
    cancels: bool = False  # its calls, as Ray does when a replica ends
    nonsense: object = None  # what it tells; None: what it should


@dataclass
class Near:
    """A transport to replicas in this process, in place of Ray's handles."""

    all: dict[str, Own] = field(default_factory=dict)
    failure: str = ""

    async def add(
        self,
        name: str,
        script: Script,
        *,
        wait_limit: float = 2.0,
        observe: Observe = no_observer,
        version: str = __version__,
    ) -> Own:
        """Add a replica whose model is loaded."""
        engines = FakeEngines(script)
        replica = Replica(
            SPEC,
            version=version,
            max_queue=8,
            wait_limit=wait_limit,
            observe=observe,
            make_engine=engines,
        )
        await replica.start()
        engines.engine.on_pass(PASS)
        self.all[name] = Own(replica, engines)
        return self.all[name]

    def kill(self, name: str) -> None:
        """End a replica at once."""
        self.all.pop(name).dead.set()

    def members(self) -> frozenset[str]:
        return frozenset(name for name, own in self.all.items() if not own.is_draining)

    async def describe(self, replica: str) -> ModelInfo:
        while replica == ANY and not self.all:
            await asyncio.sleep(0.01)
        return self._find(replica or next(iter(self.all))).replica.describe()

    async def tell(self, replica: str, since: int, instance: str, events_since: int) -> Told:
        own = self._find(replica)
        if own.is_silent:
            await asyncio.sleep(1000)
        if own.cancels:
            raise asyncio.CancelledError
        if own.nonsense is not None:
            return cast(Told, own.nonsense)
        return own.replica.tell(since, instance, events_since)

    async def generate(
        self, replica: str, ask: Ask, headers: Mapping[str, str]
    ) -> AsyncGenerator[Frame | None, None]:
        own = self._find(replica)
        async with aclosing(own.replica.generate(ask, headers)) as frames:
            while True:
                coming = asyncio.ensure_future(anext(frames, Ellipsis))
                dying = asyncio.ensure_future(own.dead.wait())
                try:
                    await asyncio.wait({coming, dying}, return_when=asyncio.FIRST_COMPLETED)
                    if own.dead.is_set():
                        raise PeerLost("its actor died")
                    frame = coming.result()
                finally:
                    dying.cancel()
                    if not coming.done():
                        coming.cancel()
                        await asyncio.wait({coming})
                if frame is Ellipsis:
                    return
                while own.is_silent:
                    await asyncio.sleep(1000)
                if own.cancels:
                    raise asyncio.CancelledError
                yield frame

    async def deployed(self) -> Deployed:
        return Deployed(len(self.all), 2, self.failure)

    def _find(self, name: str) -> Own:
        if name not in self.all:
            raise PeerLost("it is gone")
        return self.all[name]


@dataclass
class Front:
    """A front end without an engine, and its client."""

    client: httpx.AsyncClient
    near: Near
    replicas: Replicas
    app: App

    async def until(self, count: int) -> None:
        """Wait until this many replicas run the model."""
        async with asyncio.timeout(10):
            while len(self.replicas.ready()) != count:
                await self.replicas.wait_for_report(0.02)


@asynccontextmanager
async def front(
    near: Near, *, traces: Traces | None = None, **settings: Any
) -> AsyncIterator[Front]:
    """Serve a front end in front of the replicas of a transport."""
    replicas = Replicas(near)
    entry = ModelEntry("main", SPEC, 1700000000)
    app = create_app(
        Settings(**settings),
        Registry([entry], "main"),
        partial(RemoteEngine, replicas=replicas),
        text=FakeText(),
        peers=replicas,
        ended=(lambda _: None) if traces is None else traces.record,
        trace=client_trace if traces is None else traces.headers,
    )
    async with client_of(app) as client:
        yield Front(client, near, replicas, app)
