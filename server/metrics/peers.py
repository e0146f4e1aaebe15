"""The series of `GET /metrics` about peers, set anew for each scrape."""

from collections.abc import Sequence
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Gauge

from server.schemas.status import PeerStatus, Together

Sum = Literal[
    "servers",
    "requests",
    "tokens",
    "tokens_per_second",
    "kv_pages",
    "kv_pages_used",
    "streams_moved",
]
SUMS: tuple[Sum, ...] = get_args(Sum)


class PeerGauges:
    """The series of the peers, which the settings name and limit in number."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"understudy_peer_{name}", what, ("peer",), registry=registry)

        self._ready = gauge("ready", "1 if the peer gets requests")
        self._running = gauge("streams", "Requests of this server that run at the peer")
        self._sent = gauge("requests_sent", "Requests that were sent to the peer")
        self._lost = gauge("requests_lost", "Requests that were lost there, and went on elsewhere")

        self._requests = gauge("requests", "Requests that the peer has, of all its clients")
        self._tokens = gauge("tokens", "Tokens that the peer has emitted since it loaded the model")
        self._speed = gauge("tokens_per_second", "Tokens a second of the peer's last seconds")
        self._pages = gauge("kv_pages", "Pages of the peer's KV pool")
        self._used = gauge("kv_pages_used", "KV pages that sequences of the peer hold")
        self._distance = gauge("round_trip_seconds", "Duration of a question to the peer")
        self._together = Gauge(
            "understudy_together",
            "Sums over this server and its peers that are ready",
            ("of",),
            registry=registry,
        )

    def set(self, peers: Sequence[PeerStatus], together: Together | None) -> None:
        """Set all series to the present figures."""
        if together is not None:
            for name in SUMS:
                self._together.labels(name).set(together[name])
        for peer in peers:
            url = peer["url"]
            self._ready.labels(url).set(peer["state"] == "ready")
            self._running.labels(url).set(peer["running"])
            self._sent.labels(url).set(peer["sent"])
            self._lost.labels(url).set(peer["lost"])
            self._requests.labels(url).set(peer["requests"])
            self._tokens.labels(url).set(peer["tokens"])
            self._speed.labels(url).set(peer["tokens_per_second"])
            self._pages.labels(url).set(peer["kv_pages"])
            self._used.labels(url).set(peer["kv_pages_used"])
            self._distance.labels(url).set(peer["round_trip_ms"] / 1e3)
