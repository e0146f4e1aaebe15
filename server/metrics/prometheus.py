"""The series of `GET /metrics`: counts and times of requests, passes and audits.

The values of labels are limited in number: models come from the registry, sources are names of
drafting methods, and outcomes are finish reasons or error codes.
"""

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from engine.messages import Audited, PassStats, StateStats, WeightsChecked
from server.metrics.measurement import Measurement
from server.metrics.peers import PeerGauges
from server.metrics.usage import Totals
from server.schemas.status import RecurrentStates, ServerStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST

# Seconds. A pass over weights on a disk may last many seconds, a prompt of 16,000 tokens minutes.
REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
PASS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The series of one server, in a registry of their own."""

    def __init__(self) -> None:
        # Otherwise each counter gets a second series with the time at which it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no type
        self._registry = CollectorRegistry()
        self.requests = _Requests(self._registry)
        states = _States(self._registry)
        self.engines = _Engines(self._registry, states)
        self.gauges = _Gauges(self._registry, states)

    def text(self) -> bytes:
        """Return all series in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)


class _Requests:
    """The series of requests and their answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = _counter(
            registry, "requests", "Requests by their outcome", "route", "model", "outcome"
        )
        self._seconds = _histogram(
            registry,
            "request_seconds",
            "Duration of requests that were answered",
            REQUEST_BUCKETS,
            "route",
            "model",
        )
        self._first_token = _histogram(
            registry,
            "time_to_first_token_seconds",
            "Time from a request to its first token",
            REQUEST_BUCKETS,
            "route",
            "model",
        )
        self._prompt = _counter(registry, "prompt_tokens", "Tokens of prompts", "model")
        self._cached = _counter(
            registry, "cached_prompt_tokens", "Tokens of prompts whose KV was reused", "model"
        )
        self._completion = _counter(registry, "completion_tokens", "Tokens emitted", "model")

    def count(self, measured: Measurement) -> None:
        """Count a request that has ended, with or without success."""
        route, model = measured.route, measured.model
        self._ended.labels(route, model, measured.outcome).inc()
        if measured.first_token_s is not None:
            self._first_token.labels(route, model).observe(measured.first_token_s)
        if measured.totals is not None:
            self._count_tokens(model, measured.totals)
            if measured.totals.is_complete:
                self._seconds.labels(route, model).observe(measured.seconds)

    def _count_tokens(self, model: str, totals: Totals) -> None:
        """Count emitted tokens, and the prompts of complete answers: of them the reuse is known."""
        self._completion.labels(model).inc(totals.num_emitted)
        if totals.is_complete:
            self._prompt.labels(model).inc(totals.usage()["prompt_tokens"])
            self._cached.labels(model).inc(totals.num_cached)


class _States:
    """The series of the states of recurrent layers, for models that have some."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._hits = _counter(
            registry, "state_hits", "Prompts that began with a stored state", "model"
        )
        self._evictions = _counter(
            registry, "state_evictions", "Stored states of prefixes that were dropped", "model"
        )
        self._room = _gauge(
            registry, "states", "States of recurrent layers that there is memory for", "model"
        )
        self._used = _gauge(
            registry, "states_used", "States of sequences and of stored prefixes", "model", "of"
        )
        self._bytes = _gauge(registry, "state_bytes_used", "Bytes of the states in use", "model")

    def count(self, model: str, stats: StateStats) -> None:
        """Count what became of stored states in a pass."""
        self._hits.labels(model).inc(stats.hits)
        self._evictions.labels(model).inc(stats.evictions)

    def clear(self) -> None:
        """Remove the gauges of the model that was loaded."""
        for series in (self._room, self._used, self._bytes):
            series.clear()

    def set(self, model: str, states: RecurrentStates) -> None:
        """Set the gauges to the present figures."""
        self._room.labels(model).set(states["room"])
        self._used.labels(model, "sequences").set(states["sequences"])
        self._used.labels(model, "prefixes").set(states["prefixes"])
        self._bytes.labels(model).set(states["bytes_used"])


class _Engines:
    """The series of engine processes: passes, drafts, audits and restarts."""

    def __init__(self, registry: CollectorRegistry, states: _States) -> None:
        self._states = states
        self._passes = _histogram(
            registry, "pass_seconds", "Duration of passes over the target", PASS_BUCKETS, "model"
        )
        self._rows = _counter(
            registry, "pass_rows", "Rows of passes, of prompts and of trees", "model", "kind"
        )
        self._emitted = _counter(registry, "pass_tokens", "Tokens that passes emitted", "model")
        self._drafted = _counter(
            registry, "drafted_rows", "Drafted rows that were checked", "model", "source"
        )
        self._accepted = _counter(
            registry, "accepted_rows", "Drafted rows the target agreed with", "model", "source"
        )
        self._undrafted = _counter(
            registry,
            "undrafted_sequences",
            "Sequences in passes that got no draft because it would not pay",
            "model",
        )
        self._draft = _counter(
            registry,
            "draft_seconds",
            "Time of drafting: before passes (visible), and while weights travel (ahead)",
            "model",
            "when",
        )
        self._stall = _counter(
            registry,
            "stall_seconds",
            "Time the target did not compute: it waited for weights (copy), for the draft, or for "
            "the host",
            "model",
            "cause",
        )
        self._bytes = _counter(registry, "link_bytes", "Bytes of weights that were copied", "model")
        self._positions = _counter(
            registry, "audit_positions", "Emitted tokens checked against plain decoding", "model"
        )
        self._mismatches = _counter(
            registry, "audit_mismatches", "Checked tokens that plain decoding did not emit", "model"
        )
        self._checked = _counter(
            registry, "recheck_bytes", "Packed weights whose checksums were compared again", "model"
        )
        self._damaged = _counter(
            registry,
            "damaged_units",
            "Damage found in packed weights: repaired by packing a unit again, or not",
            "model",
            "repaired",
        )
        self._restarts = _counter(
            registry, "engine_restarts", "Engine processes that died and were replaced", "model"
        )
        self._resumed = _counter(
            registry, "streams_resumed", "Answers that went on after a restart", "model"
        )

    def begin(self, model: str) -> None:
        """Make the rare events of a loaded model appear as 0 instead of missing."""
        rare = (self._positions, self._mismatches, self._restarts, self._resumed, self._checked)
        for series in rare:
            series.labels(model)
        for repaired in ("yes", "no"):
            self._damaged.labels(model, repaired)

    def count_pass(self, model: str, stats: PassStats) -> None:
        """Count a pass that has ended."""
        self._passes.labels(model).observe(stats.pass_ms / 1e3)
        self._rows.labels(model, "prompt").inc(stats.prompt_rows)
        self._rows.labels(model, "tree").inc(stats.rows - stats.prompt_rows)
        self._emitted.labels(model).inc(stats.accepted)
        for source, rows in stats.drafted_by:
            self._drafted.labels(model, source).inc(rows)
        for source, rows in stats.accepted_by:
            self._accepted.labels(model, source).inc(rows)
        self._undrafted.labels(model).inc(stats.undrafted)
        self._draft.labels(model, "visible").inc(stats.draft_ms / 1e3)
        self._draft.labels(model, "ahead").inc(stats.ahead_ms / 1e3)
        self._stall.labels(model, "copy").inc(stats.copy_stall_ms / 1e3)
        self._stall.labels(model, "draft").inc(stats.draft_ms / 1e3)
        self._stall.labels(model, "host").inc(stats.host_ms / 1e3)
        self._bytes.labels(model).inc(stats.link_bytes)
        if stats.states is not None:
            self._states.count(model, stats.states)

    def count_audit(self, model: str, audited: Audited) -> None:
        """Count the audit of a finished answer."""
        self._positions.labels(model).inc(audited.positions)
        self._mismatches.labels(model).inc(audited.mismatches)

    def count_weights_check(self, model: str, checked: WeightsChecked) -> None:
        """Count the bytes of a check of packed weights, and the damage that was found."""
        self._checked.labels(model).inc(checked.nbytes)
        self._damaged.labels(model, "yes").inc(checked.repaired)
        self._damaged.labels(model, "no").inc(checked.unrepaired)

    def count_restart(self, model: str) -> None:
        """Count an engine process that died and is replaced."""
        self._restarts.labels(model).inc()

    def count_resumed(self, model: str) -> None:
        """Count an answer that goes on in another engine process."""
        self._resumed.labels(model).inc()


class _Gauges:
    """The series that are set anew for each scrape."""

    def __init__(self, registry: CollectorRegistry, states: _States) -> None:
        self._states = states
        self._model_loaded = _gauge(registry, "model_loaded", "1 if the model is loaded", "model")
        self._waiting = _gauge(
            registry, "waiting", "Requests waiting for a model, sequences waiting for a pass", "for"
        )
        self._running = _gauge(
            registry, "requests_in_engine", "Requests the engine has, waiting or running", "model"
        )
        self._gbps = _gauge(
            registry, "link_gbps", "Bandwidth of weights in the latest pass, GB/s", "model"
        )
        self._limit = _gauge(
            registry, "link_limit_gbps", "Measured bandwidth of the link, GB/s", "model"
        )
        self._bits = _gauge(
            registry, "link_bits_per_weight", "Bits in which one weight travels", "model"
        )
        self._pages = _gauge(registry, "kv_pages", "Pages of the KV pool", "model")
        self._used = _gauge(registry, "kv_pages_used", "KV pages that sequences hold", "model")
        self._peers = PeerGauges(registry)

    def set(self, status: ServerStatus) -> None:
        """Set all gauges to the present figures."""
        for model in status["models"]:
            self._model_loaded.labels(model["id"]).set(model["state"] == "loaded")
        self._waiting.labels("model").set(status["queue"]["waiting_for_model"])
        self._peers.set(status["peers"])
        self._waiting.labels("pass").set(status["queue"]["waiting_for_pass"])
        own = (self._running, self._gbps, self._limit, self._bits, self._pages, self._used)
        for series in own:
            series.clear()
        self._states.clear()
        engine = status["engine"]
        if engine is not None:
            model_id = engine["model"]
            self._running.labels(model_id).set(status["queue"]["in_engine"])
            self._limit.labels(model_id).set(engine["link_limit_gbps"])
            self._bits.labels(model_id).set(engine["link_bits_per_weight"])
            self._pages.labels(model_id).set(engine["kv_pages"])
            self._used.labels(model_id).set(engine["kv_pages_used"])
            self._gbps.labels(model_id).set(engine["link_gbps"])
            if engine["states"] is not None:
                self._states.set(model_id, engine["states"])


def _counter(registry: CollectorRegistry, name: str, what: str, *labels: str) -> Counter:
    return Counter(f"understudy_{name}", what, labels, registry=registry)


def _gauge(registry: CollectorRegistry, name: str, what: str, *labels: str) -> Gauge:
    return Gauge(f"understudy_{name}", what, labels, registry=registry)


def _histogram(
    registry: CollectorRegistry, name: str, what: str, buckets: tuple[float, ...], *labels: str
) -> Histogram:
    return Histogram(f"understudy_{name}", what, labels, registry=registry, buckets=buckets)
