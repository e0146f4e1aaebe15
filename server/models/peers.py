"""The peers of a server: its model runs there too, and `GET /v1/status` shows them."""

import functools
from typing import TYPE_CHECKING

from engine.messages import ModelInfo
from server.models.loaded_model import LoadedModel
from server.models.replica import load_of
from server.schemas.status import PeerStatus

if TYPE_CHECKING:  # it imports an HTTP client, which only a server with peers needs
    from cluster.peers import Peer, Peers


def run_at_peers(model: LoadedModel, peers: "Peers", patience: float) -> None:
    """Let the requests of a model run at peers too.

    Args:
        patience: seconds that a stream waits for a peer that can go on with it.
    """
    from cluster.streams import PeerStreams  # an HTTP client, which other servers do not need

    load = functools.partial(load_of, model)
    model.run_at_peers(PeerStreams(model.engine, peers, load, model.books, patience))


def peer_statuses(peers: "Peers", info: ModelInfo | None) -> list[PeerStatus]:
    """Return the state of each peer, seen from the model that is loaded here."""
    return [_status(peer, peers, info) for peer in peers.all.values()]


def _status(peer: "Peer", peers: "Peers", info: ModelInfo | None) -> PeerStatus:
    report = peer.report
    model = None if report is None else report.model
    load = None if report is None else report.load
    reason = peer.problem if info is None else peer.reason_against(info, None, None)
    is_equal = info is not None and model is not None and model.fingerprint == info.fingerprint
    note = reason
    if not reason and model is not None and info is not None and not is_equal:
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
        "pages": peers.placement.num_pages(peer.name),
        "sent": peer.num_sent,
        "lost": peer.num_lost,
        "running": peers.placement.num_placed(peer.name),
    }
