"""A collector of traces, which keeps the spans that are sent to it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from gzip import decompress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass
class Collector:
    """The spans that came, by OTLP over HTTP.

    Args:
        url: the endpoint for them.
    """

    url: str
    spans: list[Any] = field(default_factory=list)

    def servers(self, request_id: str) -> list[Any]:
        """Return the spans of a whole request, at each server and replica that has run it."""
        name = "understudy.request_id"
        return [span for span in list(self.spans) if attributes_of(span).get(name) == request_id]


def attributes_of(span: Any) -> dict[str, str]:
    """Return the attributes of a span that are texts."""
    return {own.key: own.value.string_value for own in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    """Collect spans on a port of loopback."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    collector.spans.extend(scope.spans)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        collector = Collector(f"http://127.0.0.1:{server.server_port}/v1/traces")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield collector
        finally:
            server.shutdown()
            thread.join()
