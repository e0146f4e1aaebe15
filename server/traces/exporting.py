"""Where traces go, by OpenTelemetry's own environment variables. It imports OpenTelemetry."""

import threading
from collections.abc import Mapping

from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import (
    BatchSpanProcessor,
    ConsoleSpanExporter,
    SpanExporter,
)

from server.config.files import ConfigError
from server.traces.spans import Traces
from server.version import version

END_S = 2.0  # for traces that are not sent yet when the server ends
EXPORTERS = ("otlp", "console", "none")


class ExportedTraces(Traces):
    """Traces that are exported in a thread."""

    def __init__(self, provider: TracerProvider) -> None:
        super().__init__(provider)
        self._provider = provider

    def close(self) -> None:
        """Send what is not sent yet, within `END_S`: a collector may not answer."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(END_S)


def export_traces(env: Mapping[str, str]) -> ExportedTraces:
    """Return traces that go where the variables `OTEL_...` say.

    Raises `ConfigError` for an exporter or a protocol that is not supported.
    """
    resource = Resource.create({SERVICE_VERSION: version(if_not_installed="unknown")})
    if str(resource.attributes.get(SERVICE_NAME, "")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: "understudy"}))
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    exporter = _exporter(env)
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return ExportedTraces(provider)


def _exporter(env: Mapping[str, str]) -> SpanExporter | None:
    name = env.get("OTEL_TRACES_EXPORTER") or "otlp"
    if name not in EXPORTERS:
        raise ConfigError(
            f"environment variable OTEL_TRACES_EXPORTER: {name!r} is not supported; "
            f"there are: {', '.join(EXPORTERS)}"
        )
    if name == "console":
        return ConsoleSpanExporter()
    if name == "none":
        return None
    for variable in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):
        protocol = env.get(variable) or "http/protobuf"
        if protocol != "http/protobuf":
            raise ConfigError(
                f"environment variable {variable}: {protocol!r} is not supported; use "
                "http/protobuf, which collectors take at port 4318"
            )
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter()
