"""The engine of a front end that has none: its requests run on replicas elsewhere.

`Replicas` are peers that come and go, reached by a `Transport`; placement, the streams that move
and what a server shows of its peers are the same as for peers over HTTP.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from cluster.address import Address
from cluster.answering import Frame
from cluster.hop import trace_headers
from cluster.peer import PeerLost
from cluster.peers import Peer, Peers
from cluster.replica import Event, Told
from cluster.served_model import ServedModel
from cluster.wire import Ask, Report
from engine import __version__
from engine.errors import EngineDied, ModelError, RequestError
from engine.messages import Generate, LoadProgress, ModelInfo, Tokens
from engine.moves import LimitMemory
from engine.process.callbacks import NO_CALLBACKS, EngineCallbacks
from engine.process.engine_process import State
from engine.spec import ModelSpec

log = logging.getLogger("understudy.cluster")

WATCH_SECONDS = 0.2  # between two looks at which replicas there are
STATUS_SECONDS = 2.0  # between two looks at how many replicas are loaded
SILENCE_SECONDS = 5.0  # after which a replica is lost
ANY = ""  # instead of the name of a replica


@dataclass(frozen=True)
class Deployed:
    """The state of a deployment.

    Args:
        num_ready: replicas that have loaded the model.
        num_wanted: replicas that there should be.
        failure: why there will be none; "" if there will.
    """

    num_ready: int
    num_wanted: int
    failure: str = ""


class Transport(Protocol):
    """The way to the replicas. All methods but `members` raise `PeerLost`."""

    def members(self) -> frozenset[str]:
        """Return the names of the replicas that take requests."""

    async def describe(self, replica: str) -> ModelInfo:
        """Return what `Replica.describe` says; `ANY` waits for the first one."""

    async def tell(self, replica: str, since: int, instance: str, events_since: int) -> Told:
        """Return what `Replica.tell` says."""

    def generate(
        self, replica: str, ask: Ask, headers: Mapping[str, str]
    ) -> AsyncGenerator[Frame | None, None]:
        """Return what `Replica.generate` yields. Closing it ends the request there."""

    async def deployed(self) -> Deployed:
        """Return the state of the deployment."""


class ReplicaClient:
    """The requests to one replica.

    Args:
        may_move: returns whether another replica can go on with streams of a fingerprint.
        on_event: is called with what its engine reports.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        may_move: Callable[[str], bool],
        on_event: Callable[[Event], None],
    ) -> None:
        self._name, self._transport = name, transport
        self._may_move, self._on_event = may_move, on_event
        self._told = -1  # the number of the last event
        self._is_leaving = False
        self._num_closes = 0

    async def report(self, number: int, instance: str) -> tuple[Report, float]:
        """Return what the replica says of itself, and the seconds that the question took."""
        asked = time.monotonic()
        try:
            with _losing_cancelled_calls():
                async with asyncio.timeout(SILENCE_SECONDS):
                    told = await self._transport.tell(self._name, number, instance, self._told)
        except TimeoutError as error:
            raise PeerLost("it does not answer") from error
        took = time.monotonic() - asked
        _check_version(told)
        for event in told.events:
            self._on_event(event)
        self._told = told.number
        return told.report, took

    def leave(self) -> None:
        """Note that the replica takes no more requests: it drains, or is dead.

        Streams end here when another replica can go on with them. Until then they go on, as long as
        the replica lives.
        """
        self._is_leaving = True

    async def generate(self, ask: Ask) -> AsyncGenerator[Frame, None]:
        """Yield the frames of a request up to `Ended` or `Failure`. Raise `PeerLost` before."""
        headers, num_closes = dict(trace_headers.get()()), self._num_closes
        stream = self._transport.generate(self._name, ask, headers)
        async with aclosing(stream):
            while True:
                if self._num_closes > num_closes:
                    raise PeerLost("the server gave it up")
                if self._is_leaving and self._may_move(ask.fingerprint):
                    raise PeerLost("it is being shut down")
                try:
                    with _losing_cancelled_calls():
                        async with asyncio.timeout(SILENCE_SECONDS):
                            frame = await anext(stream)
                except TimeoutError as error:
                    raise PeerLost("it is silent") from error
                except StopAsyncIteration as error:
                    raise PeerLost("it ended the stream too early") from error
                if frame is not None:
                    yield frame

    async def close(self) -> None:
        """End all streams at their next frame or sign of life. Others may begin later."""
        self._num_closes += 1


@contextlib.contextmanager
def _losing_cancelled_calls() -> Iterator[None]:
    """Turn the cancellation of a call into `PeerLost`, unless this task itself is cancelled.

    Ray cancels the calls of a replica that ends. A task that took it for its own end would leave
    the client of the stream waiting.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise PeerLost("it ended during a call") from error


def _check_version(told: object) -> None:
    """Raise `PeerLost` for what a replica of another version tells: its objects may be others."""
    theirs = getattr(getattr(told, "report", None), "version", None)
    if not isinstance(told, Told) or theirs != __version__:
        raise PeerLost(
            f"it runs version {theirs or 'unknown'} of Understudy, and this server {__version__}; "
            "all machines of a cluster need the same one"
        )


class Replicas(Peers):
    """The replicas of one model, which come and go.

    Attributes:
        transport: the way to them.
    """

    runs_here = False

    def __init__(self, transport: Transport) -> None:
        super().__init__((), self._new_client)
        self.transport = transport
        self._clients: dict[str, ReplicaClient] = {}
        self._callbacks = NO_CALLBACKS
        self._watching: asyncio.Task[None] | None = None

    def listen(self, callbacks: EngineCallbacks) -> None:
        """Let these functions be called with what the engines of all replicas report."""
        self._callbacks = callbacks

    def start(self) -> None:
        """Begin to watch which replicas there are."""
        self._watching = asyncio.create_task(self._watch(), name="replicas")

    async def close(self) -> None:
        """Stop watching, and end all streams."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await super().close()

    def ready(self, info: ModelInfo | None = None) -> list[Peer]:
        """Return the replicas that have loaded a model.

        Args:
            info: only replicas with these weights and this fingerprint are returned; None: all.
        """
        found = [
            peer
            for peer in self.all.values()
            if not peer.problem and peer.report is not None and peer.report.model is not None
        ]
        if info is None:
            return found
        own = ServedModel.of(info)
        return [peer for peer in found if not peer.reason_against(own, own.names, None)]

    def _new_client(self, address: Address) -> ReplicaClient:
        client = ReplicaClient(address.url, self.transport, self._may_move, self._pass_on)
        self._clients[address.url] = client
        return client

    def _may_move(self, fingerprint: str) -> bool:
        """Return whether a replica that stays has a fingerprint."""
        models = [own.report.model for own in self.ready() if own.report is not None]
        return any(model is not None and model.fingerprint == fingerprint for model in models)

    def _pass_on(self, event: Event) -> None:
        name, args = event
        getattr(self._callbacks, name)(*args)

    async def _watch(self) -> None:
        while True:
            members = self.transport.members()
            for name in self.all.keys() - members:
                self._clients.pop(name).leave()
                self.remove(name)
                log.info("%s takes no more requests", name)
            for name in sorted(members - self.all.keys()):
                self.add(Address(name))
            await asyncio.sleep(WATCH_SECONDS)


class RemoteEngine:
    """The engine of a front end without one, in place of `EngineClient`.

    Streams run by `cluster.streams.PeerStreams`, which place each on a replica. Here is what else
    a front end asks of an engine.

    Args:
        max_queue: is not used: replicas limit their queues themselves.
        callbacks: are called with what the engines of all replicas report.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        max_queue: int,
        callbacks: EngineCallbacks,
        replicas: Replicas,
    ) -> None:
        self._id = spec.id
        self._replicas = replicas
        self._callbacks = callbacks
        self._info: ModelInfo | None = None
        self._state: State = "new"
        replicas.listen(callbacks)

    @property
    def state(self) -> State:
        """Whether there is a replica like the one that `info` describes."""
        if self._state != "ready" or self._info is None:
            return self._state
        return "ready" if self._replicas.ready(self._info) else "restarting"

    @property
    def info(self) -> ModelInfo | None:
        """The properties of the model on one of the replicas; None before the first is loaded."""
        return self._info

    @property
    def num_outstanding(self) -> int:
        """The number of requests of this front end that run on replicas."""
        placement = self._replicas.placement
        return sum(placement.num_placed(name) for name in self._replicas.all)

    @property
    def num_prompt_tokens_left(self) -> int:
        """0: each replica reports its own."""
        return 0

    def position(self, request_id: str) -> int:
        """Return 0: the queues are on the replicas."""
        return 0

    async def start(self) -> ModelInfo:
        """Wait for the first replica, and describe the model. Raise `ModelError` if none comes."""
        self._state = "loading"
        describing = asyncio.create_task(self._describe_first(), name=f"first of {self._id}")
        try:
            while not describing.done():
                await self._note_progress()
                await asyncio.wait({describing}, timeout=STATUS_SECONDS)
            info = self._info = describing.result()
        except ModelError:
            self._state = "failed"
            raise
        finally:
            describing.cancel()
        self._state = "ready"
        return info

    async def ready(self, timeout: float) -> ModelInfo:
        """Wait for any replica that runs the model, and describe it.

        Raise `EngineDied` after `close`, `TimeoutError` if none comes in `timeout` seconds.
        """
        async with asyncio.timeout(timeout):
            while True:
                if self._state == "closed" or self._info is None:
                    raise EngineDied("The server is shutting down.", "engine_closed")
                if self._replicas.ready(self._info):
                    return self._info
                await self._adopt(self._info)
                await self._replicas.wait_for_report(WATCH_SECONDS)

    def run(
        self,
        message: Generate,
        *,
        on_prompt: Callable[[int], None] | None = None,
        on_lost: Callable[[], None] | None = None,
        on_tokens: Callable[[int], None] | None = None,
    ) -> AsyncGenerator[Tokens, None]:
        """Raise `EngineDied`: `PeerStreams` run the requests."""
        raise EngineDied("This server has no engine of its own.")

    def limit_memory(self, limits: LimitMemory) -> None:
        """Raise `RequestError`: the memory of replicas is that of their machines."""
        raise RequestError(
            "The memory of replicas cannot be limited from here. Set it in the model's file, "
            "'memory', and deploy the model again.",
            "not_supported",
        )

    def drain(self, reason: str) -> None:
        """Do nothing: requests that wait are cut off with those that run."""

    async def close(self) -> None:
        """Give the replicas up, and end the streams that run there. The replicas stay."""
        self._state = "closed"
        for peer in list(self._replicas.all.values()):
            await peer.client.close()

    async def _describe_first(self) -> ModelInfo:
        while True:
            try:
                await self._describe(ANY)  # waits for one, of any version
                while not (ready := self._replicas.ready()):
                    await self._replicas.wait_for_report(WATCH_SECONDS)
                return await self._describe(ready[0].name)
            except PeerLost as error:  # it died just now
                log.warning("%s: %s", self._id, error)
                await asyncio.sleep(WATCH_SECONDS)

    async def _note_progress(self) -> None:
        with contextlib.suppress(PeerLost):
            deployed = await self._replicas.transport.deployed()
            if deployed.failure:
                raise ModelError(f"No replica of {self._id!r} could be started: {deployed.failure}")
            self._callbacks.progress(
                LoadProgress(
                    "waiting for replicas", deployed.num_ready, deployed.num_wanted, "steps"
                )
            )

    async def _adopt(self, before: ModelInfo) -> None:
        """Describe the model by another replica, where none like the one before is left."""
        for peer in self._replicas.ready():
            if not peer.reason_against(ServedModel.of(before), None, None):
                with contextlib.suppress(PeerLost):
                    self._info = await self._describe(peer.name)
                    return

    async def _describe(self, replica: str) -> ModelInfo:
        with _losing_cancelled_calls():
            return await self._replicas.transport.describe(replica)
