"""The peers as `GET /v1/status` shows them."""

from typing import TYPE_CHECKING

from engine.messages import ModelInfo
from server.schemas.status import PeerStatus

if TYPE_CHECKING:  # it imports an HTTP client, which only a server with peers needs
    from cluster.peers import Peer, Peers


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
