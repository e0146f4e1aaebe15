"""The peers of a server: its model runs there too, and `GET /v1/status` shows them."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cluster.report import Figures
from cluster.served_model import ServedModel
from server.models.loaded_model import LoadedModel
from server.models.replica import figures_of, load_of, served_model
from server.schemas.status import PeerStatus, Together

if TYPE_CHECKING:  # it imports an HTTP client, which only a server with peers needs
    from cluster.peers import Peer, Peers


def run_at_peers(model: LoadedModel, peers: "Peers", patience: float) -> None:
    """Let the requests of a model run at peers too.

    Args:
        patience: seconds that a stream waits for a peer that can go on with it.
    """
    from cluster.streams import PeerStreams  # an HTTP client, which other servers do not need

    load, served = functools.partial(load_of, model), functools.partial(served_model, model)
    streams = PeerStreams(model.engine, peers, load, served, model.books, patience)
    model.run_at_peers(streams)


def peer_statuses(peers: "Peers", model: LoadedModel | None) -> tuple[list[PeerStatus], Together]:
    """Return the state of each peer, seen from the model that is loaded here, and the sums."""
    own = None if model is None else served_model(model)
    found = [_status(peer, peers, own) for peer in peers.all.values()]
    return found, _sums([peer for peer in found if peer["state"] == "ready"], peers, model)


def _sums(ready: Sequence[PeerStatus], peers: "Peers", model: LoadedModel | None) -> Together:
    own = Figures() if model is None else figures_of(model)
    requests = 0 if model is None else model.engine.num_outstanding
    speed = own.tokens_per_second + sum(peer["tokens_per_second"] for peer in ready)
    return {
        "servers": (model is not None) + len(ready),
        "requests": requests + sum(peer["requests"] for peer in ready),
        "tokens": own.tokens + sum(peer["tokens"] for peer in ready),
        "tokens_per_second": round(speed, 3),
        "kv_pages": own.kv_pages + sum(peer["kv_pages"] for peer in ready),
        "kv_pages_used": own.kv_pages_used + sum(peer["kv_pages_used"] for peer in ready),
        "streams_moved": peers.num_moved,
    }


def _status(peer: "Peer", peers: "Peers", own: ServedModel | None) -> PeerStatus:
    report = peer.report
    model = None if report is None else report.model
    load = None if report is None else report.load
    figures = Figures() if report is None else report.figures
    reason = peer.problem if own is None else peer.reason_against(own, None, None)
    note = reason
    if not reason and model is not None and own is not None and not model.computes_as(own.names):
        note = "it computes other bits: it gets new requests only, and no streams of others"
    return {
        "url": peer.name,
        "state": "away" if reason else "ready",
        "note": note,
        "version": None if report is None else report.version,
        "model": None if model is None else model.id,
        "fingerprint": None if model is None else model.fingerprint,
        "round_trip_ms": round(peer.round_trip * 1e3, 1),
        "requests": 0 if load is None else load.sequences,
        "free_pages": None if load is None else load.free_pages,
        "tokens": figures.tokens,
        "tokens_per_second": round(figures.tokens_per_second, 3),
        "kv_pages": figures.kv_pages,
        "kv_pages_used": figures.kv_pages_used,
        "pages": peers.placement.num_pages(peer.name),
        "sent": peer.num_sent,
        "lost": peer.num_lost,
        "running": peers.placement.num_placed(peer.name),
    }
