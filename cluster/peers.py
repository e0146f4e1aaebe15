"""The peers of a server: who they are, what they report, and where requests go."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

from cluster.address import Address
from cluster.peer import PeerClient, PeerLost, PeerNonsense
from cluster.placement import Placement
from cluster.report import naming_key
from cluster.served_model import ServedModel
from cluster.wire import PROTOCOL, Ask, Emitted, Ended, Failure, Progress, Report
from engine.messages import NO_DRAFT
from engine.timing import smoothed

log = logging.getLogger("understudy.cluster")

NO_ANSWER_YET = "it has not answered yet"
POLL_SECONDS = 1.0
ROUND_TRIP_WEIGHT = 0.05  # of the newest one, if it is longer than the average
LONGEST_POLL = 8.0  # seconds between two questions to a peer that does not answer
FAULTY_SECONDS = 30.0  # in which a peer that has answered nonsense gets no requests


class Client(Protocol):
    """The requests to one peer, over HTTP (`PeerClient`) or otherwise."""

    async def report(self, number: int, instance: str) -> tuple[Report, float]:
        """Return what the peer says of itself, and the seconds that the question took."""

    def generate(self, ask: Ask) -> AsyncGenerator[Progress | Emitted | Ended | Failure, None]:
        """Yield what the peer answers to a request, up to `Ended` or `Failure`."""

    async def close(self) -> None:
        """Close all connections."""


MakeClient = Callable[[Address], Client]


@dataclass(eq=False)
class Peer:
    """One peer, and what is known of it.

    Attributes:
        problem: why it gets no requests; "" if it does.
        num_sent: requests that were sent to it.
        num_lost: of them those that it lost.
    """

    address: Address
    client: Client
    report: Report | None = None
    problem: str = NO_ANSWER_YET
    round_trip: float = 0.0  # seconds
    faulty_until: float = 0.0
    num_sent: int = 0
    num_lost: int = 0
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """The name of the peer in the placement, and for people."""
        return self.address.url

    def count_sent(self) -> None:
        """Count a request that is sent to this peer."""
        self.num_sent += 1

    def count_lost(self) -> None:
        """Count a request that was lost here; another server continues it."""
        self.num_lost += 1

    def note_problem(self, problem: str) -> None:
        """Record why the peer gets no requests, and log it once."""
        if problem != self.problem:
            log.warning("peer %s: %s", self.name, problem)
        self.problem = problem

    def reason_against(self, own: ServedModel, names: Set[str] | None, method: str | None) -> str:
        """Return why the peer cannot run a request; "" if it can.

        Args:
            own: the model that runs here.
            names: the fingerprints of the engine that must run the stream; None: any engine may.
            method: the drafting method that the request names.
        """
        if self.problem:
            return self.problem
        model = None if self.report is None else self.report.model
        if model is None:
            return "it has no model loaded"
        if not model.has_weights_of(own):
            return _difference(model, own)
        if names is not None and not names & self.names_beside(own):
            return f"it computes other bits (fingerprint {model.fingerprint})"
        if method not in (None, NO_DRAFT, *model.draft_methods):
            return f"it cannot draft by {method}"
        return ""

    def names_beside(self, own: ServedModel) -> frozenset[str]:
        """Return all fingerprints that the answers of this peer may be shown with.

        If it computes the same bits as this server, the fingerprints of this server are among them.

        Args:
            own: the model that this server has loaded.
        """
        model = None if self.report is None else self.report.model
        if model is None:
            return frozenset()
        return model.names | own.names if model.computes_as(own.names) else model.names

    def fingerprint_beside(self, own: ServedModel) -> str:
        """Return the fingerprint that clients of this server are shown for answers of this peer.

        If the peer computes the same bits as this server, it is the fingerprint of this server.
        """
        model = None if self.report is None else self.report.model
        if model is None or model.computes_as(own.names):
            return own.fingerprint
        return model.fingerprint


def _difference(model: ServedModel, own: ServedModel) -> str:
    """Return why the weights of a peer (`model`) do not count as equal to ours (`own`)."""
    difference = f"it has other weights or another model loaded ({model.id})"
    unread = [
        f"{who} has read {served.read_share:.0%} of its files"
        for who, served in (("it", model), ("this server", own))
        if not served.contents
    ]
    if not unread:
        return difference
    return (
        f"{difference}, or a copy whose files have other times, which is known when all bytes have "
        f"been read in idle time: {' and '.join(unread)}"
    )


class Peers:
    """All peers, and the placement of requests on them and on this server.

    Args:
        make_client: makes the client of a peer; tests give one without a network.

    Attributes:
        runs_here: whether requests may run on this server too.
    """

    runs_here = True

    def __init__(self, addresses: Sequence[Address], make_client: MakeClient = PeerClient) -> None:
        self._make_client = make_client
        self.all = {own.url: Peer(own, make_client(own)) for own in addresses}
        self.placement = Placement()
        self.num_moved = 0  # streams that went on elsewhere
        self._reported = asyncio.Event()

    def start(self) -> None:
        """Begin to ask the peers how they are."""
        for peer in self.all.values():
            self._begin(peer)

    def add(self, address: Address) -> None:
        """Add a peer, and begin to ask it how it is."""
        peer = Peer(address, self._make_client(address))
        self.all[peer.name] = peer
        self._begin(peer)

    def remove(self, name: str) -> None:
        """Forget a peer. Streams that run there go on until it ends them."""
        peer = self.all.pop(name)
        self.placement.remove(name)
        if peer.task is not None:
            peer.task.cancel()

    def _begin(self, peer: Peer) -> None:
        self._forget(peer)
        peer.task = asyncio.create_task(self._poll(peer), name=f"peer {peer.name}")

    async def close(self) -> None:
        """Stop asking, and close the connections."""
        tasks = [peer.task for peer in self.all.values() if peer.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for peer in self.all.values():
            await peer.client.close()

    def count_moved(self) -> None:
        """Count a stream that continued on another server after its own server was lost."""
        self.num_moved += 1

    async def wait_for_report(self, timeout: float) -> None:
        """Wait until any peer has reported, or until `timeout` seconds have passed."""
        self._reported.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._reported.wait()

    def note_lost(self, peer: Peer, error: PeerLost) -> None:
        """Note that a peer has lost a request. Nothing goes there until its next report."""
        peer.count_lost()
        if isinstance(error, PeerNonsense):
            peer.faulty_until = time.monotonic() + FAULTY_SECONDS
        peer.note_problem(str(error))
        self._forget(peer)

    def _forget(self, peer: Peer) -> None:
        """Forget what the peer has reported."""
        peer.report = None
        if self.all.get(peer.name) is peer:
            self.placement.add(peer.name, key=naming_key(peer.address.key))

    async def _poll(self, peer: Peer) -> None:
        wait = POLL_SECONDS
        while True:
            try:
                await self._ask(peer)
                wait = POLL_SECONDS
            except PeerLost as error:
                if isinstance(error, PeerNonsense):
                    peer.faulty_until = time.monotonic() + FAULTY_SECONDS
                peer.note_problem(str(error))
                self._forget(peer)
                wait = min(2 * wait, LONGEST_POLL)
            await asyncio.sleep(wait)

    async def _ask(self, peer: Peer) -> None:
        """Ask a peer for a report and note it."""
        asked_at, before = time.monotonic(), peer.report
        number, instance = (0, "") if before is None else (before.number, before.instance)
        report, took = await peer.client.report(number, instance)
        if report.protocol != PROTOCOL:
            raise PeerLost(f"its version ({report.version}) speaks another protocol")
        if asked_at < peer.faulty_until:
            return
        if not report.is_whole and (peer.report is not before or before is None):
            return  # it is a difference to something that was forgotten meanwhile
        try:
            change = report.change
        except ValueError as error:
            raise PeerNonsense("its report has names of pages that are none") from error
        if peer.problem:
            is_new = "is there" if peer.problem == NO_ANSWER_YET else "is back"
            log.info("peer %s: it %s, with %s", peer.name, is_new, report.model or "no model yet")
        peer.report, peer.problem = report, ""
        # A peer that is busy for a moment is no farther away.
        usual = peer.round_trip or took
        peer.round_trip = min(took, smoothed(usual, took, ROUND_TRIP_WEIGHT))
        if report.load is not None:
            self.placement.report(peer.name, report.load, change, asked_at, peer.round_trip)
        self._reported.set()
