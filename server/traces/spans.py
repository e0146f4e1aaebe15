"""The spans of a request, made when its answer has ended. It imports OpenTelemetry.

A request is one span of the kind SERVER, with the attributes of the conventions for HTTP and for
generative AI. Below it are `queue` (until the engine runs the request), `prefill` (until the first
token) and `decode` (until the last), in which each pass that emitted tokens is an event, and
`engine restart` for each time that the engine died. Spans have nothing of prompts and answers.

All of this is made from times that were noted on the way, so that it delays no token. The span of a
request that runs at a peer is the parent of the peer's own span.
"""

from collections.abc import Mapping, Sequence

from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider
from opentelemetry.util.types import AttributeValue

from server.metrics.measurement import Measurement
from server.version import version

LONGEST_CONTEXT = 512  # bytes; OpenTelemetry would warn of longer ones in the log
OPERATIONS = {
    "/completions": "text_completion",
    "/peer/generate": "text_completion",
}  # by route; the others are chats


class Traces:
    """The traces of a server.

    Args:
        provider: makes the spans; tests give one that keeps them.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._tracer = provider.get_tracer("understudy", version(if_not_installed="unknown"))
        self._begun: dict[int, Span] = {}  # by the identity of the measurement, until its end
        _parent([])  # the first call loads the propagators, which takes a while

    def headers(self, measured: Measurement) -> Mapping[str, str]:
        """Return the headers by which another server continues the trace of a request.

        Its span is begun now, because the other server's spans name it.
        """
        span = self._begun.get(id(measured))
        if span is None:
            span = self._begun[id(measured)] = self._begin(measured)
        carrier: dict[str, str] = {}
        propagate.inject(carrier, trace.set_span_in_context(span, Context()))
        return carrier

    def record(self, measured: Measurement) -> None:
        """Make the spans of a request that has ended, if it generates text."""
        begun = self._begun.pop(id(measured), None)
        if not measured.route:
            return
        span = begun or self._begin(measured)
        if begun is not None:  # what was not known then
            span.update_name(_name(measured))
            span.set_attributes(_attributes(measured))
        if measured.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if span.is_recording():
            self._record_phases(measured, trace.set_span_in_context(span))
        span.end(measured.wall_ns(measured.ended or measured.started))

    def _begin(self, measured: Measurement) -> Span:
        return self._tracer.start_span(
            _name(measured),
            context=_parent(measured.headers),
            kind=SpanKind.SERVER,
            attributes=_attributes(measured),
            start_time=measured.wall_ns(measured.started),
        )

    def _record_phases(self, measured: Measurement, parent: Context) -> None:
        end = measured.ended or measured.started
        ran, first = measured.wait.ended, measured.first_token_at
        self._phase("queue", measured, parent, measured.started, ran or end)
        if ran is not None:
            self._phase("prefill", measured, parent, ran, first or end)
        if first is not None:
            passes = [(at, {"understudy.tokens": num_tokens}) for at, num_tokens in measured.passes]
            self._phase("decode", measured, parent, first, end, passes)
        for lost, resumed in measured.wait.losses:
            self._phase("engine restart", measured, parent, lost, resumed or end)

    def _phase(
        self,
        name: str,
        measured: Measurement,
        parent: Context,
        began: float,
        ended: float,
        passes: Sequence[tuple[float, Mapping[str, AttributeValue]]] = (),
    ) -> None:
        span = self._tracer.start_span(name, parent, start_time=measured.wall_ns(began))
        for at, attributes in passes:
            span.add_event("pass", attributes, measured.wall_ns(at))
        span.end(measured.wall_ns(max(began, ended)))


def _parent(headers: Sequence[tuple[bytes, bytes]]) -> Context:
    """Return the context that a request came with, by `OTEL_PROPAGATORS`, or an empty one.

    Malformed headers are ignored, and so are headers that come twice.
    """
    fields = propagate.get_global_textmap().fields
    carrier: dict[str, str] = {}
    twice = set[str]()
    for raw_name, value in headers:
        name = raw_name.decode("latin-1").lower()
        if name in fields and len(value) <= LONGEST_CONTEXT:
            twice |= {name} & carrier.keys()
            carrier[name] = value.decode("latin-1")
    kept = {name: value for name, value in carrier.items() if name not in twice}
    return propagate.extract(kept, Context())


def _name(measured: Measurement) -> str:
    return f"{_operation(measured)} {measured.model}".strip()


def _operation(measured: Measurement) -> str:
    return OPERATIONS.get(measured.route, "chat")


def _attributes(measured: Measurement) -> dict[str, AttributeValue]:
    known = {**_of_request(measured), **_of_answer(measured)}
    return {name: value for name, value in known.items() if value is not None}


def _of_request(measured: Measurement) -> dict[str, AttributeValue | None]:
    asked = measured.asked
    return {
        **(_of_http(measured) if measured.method else {}),
        "error.type": measured.outcome if measured.status >= 400 else None,
        "understudy.request_id": measured.request_id,
        "gen_ai.operation.name": _operation(measured),
        "gen_ai.provider.name": "understudy",
        "gen_ai.request.model": measured.model or None,
        "gen_ai.request.choice.count": None if asked is None else asked.num_choices,
        "gen_ai.request.max_tokens": None if asked is None else asked.max_tokens,
        "gen_ai.request.temperature": None if asked is None else asked.temperature,
        "gen_ai.request.top_p": None if asked is None else asked.top_p,
    }


def _of_http(measured: Measurement) -> dict[str, AttributeValue | None]:
    return {
        "http.request.method": measured.method,
        "http.route": measured.path,  # routes that generate text have no parameters
        "url.path": measured.path,
        "http.response.status_code": measured.status,
        "client.address": measured.client,
    }


def _of_answer(measured: Measurement) -> dict[str, AttributeValue | None]:
    totals = measured.totals
    if totals is None or measured.asked is None:  # none was begun
        return {}
    timings = totals.timings()
    return {
        "gen_ai.response.id": measured.asked.id,
        "gen_ai.response.model": measured.model,
        "gen_ai.response.finish_reasons": [totals.finish] if totals.is_complete else None,
        "gen_ai.usage.input_tokens": totals.counts()["prompt_tokens"],
        "gen_ai.usage.cache_read.input_tokens": totals.num_begun_cached,
        "gen_ai.usage.output_tokens": totals.num_generated,
        "understudy.passes": timings["passes"],
        "understudy.drafted_rows": timings["draft_n"],
        "understudy.accepted_rows": timings["draft_n_accepted"],
        "understudy.resumed": timings["resumed"],
    }
