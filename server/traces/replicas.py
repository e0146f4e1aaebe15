"""Spans of requests that a Ray replica runs. Their parents are spans of the front server."""

from collections.abc import Callable, Mapping

from cluster.wire import Ask
from server.metrics.measurement import Measurement
from server.metrics.peer_counts import PeerCounts
from server.traces.spans import Traces

ROUTE = "/peer/generate"  # as a peer counts such a request


class ReplicaTraces:
    """Makes the span of each request of a replica.

    Args:
        traces: makes the spans.
        close: sends those that are not sent yet, when the replica ends.
    """

    def __init__(self, traces: Traces, close: Callable[[], None] = lambda: None) -> None:
        self._traces = traces
        self.close = close

    def observe(self, model: str, ask: Ask, headers: Mapping[str, str]) -> "TracedRequest":
        """Return the observer of a request.

        Args:
            model: the id of the model.
            headers: those by which the server in front lets its trace be continued.
        """
        message = ask.message
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        request_id = message.http_id or message.request_id
        return TracedRequest(
            self._traces,
            Measurement(ROUTE, method="", request_id=request_id, headers=raw),
            model,
            ask,
        )


class TracedRequest(PeerCounts):
    """One request, whose span is made when it has ended."""

    def __init__(self, traces: Traces, measured: Measurement, model: str, ask: Ask) -> None:
        super().__init__(measured, model, ask)
        self._traces = traces

    def leave(self) -> None:
        """Make the span."""
        super().leave()
        self.measured.close(200)
        self._traces.record(self.measured)
