"""The series of `GET /metrics` about peers, set anew for each scrape."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Gauge

from server.schemas.status import PeerStatus


class PeerGauges:
    """The series of the peers, which the settings name and limit in number."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, what: str) -> Gauge:
            return Gauge(f"understudy_peer_{name}", what, ("peer",), registry=registry)

        self._ready = gauge("ready", "1 if the peer gets requests")
        self._running = gauge("streams", "Requests of this server that run at the peer")
        self._sent = gauge("requests_sent", "Requests that were sent to the peer")
        self._lost = gauge("requests_lost", "Requests that were lost there, and went on elsewhere")

    def set(self, peers: Sequence[PeerStatus]) -> None:
        """Set all series to the present figures."""
        for peer in peers:
            url = peer["url"]
            self._ready.labels(url).set(peer["state"] == "ready")
            self._running.labels(url).set(peer["running"])
            self._sent.labels(url).set(peer["sent"])
            self._lost.labels(url).set(peer["lost"])
