"""The series of `GET /metrics`: counts and times of requests, passes and audits.

The values of labels are limited in number: models come from the registry, sources are names of
drafting methods, and outcomes are finish reasons or error codes.
"""

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from engine.kv_disk_stats import KVDiskStats
from engine.messages import Audited, PassStats, WeightsChecked
from engine.moves import Replanned
from server.metrics.measurement import Measurement
from server.metrics.memory_series import DiskSeries, PlaceSeries, StateSeries
from server.metrics.peers import PeerGauges
from server.metrics.series import counter, gauge, histogram
from server.metrics.usage import Totals
from server.schemas.status import ServerStatus
from server.version import version

CONTENT_TYPE = CONTENT_TYPE_LATEST
BYTES_PER_GB = 1e9

# Seconds. A pass over weights on a disk may last a minute, a prompt of 16,000 tokens minutes, and a
# long answer an hour.
REQUEST_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
PASS_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The series of one server, in a registry of their own."""

    def __init__(self) -> None:
        # Otherwise each counter gets a second series with the time at which it was made.
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client has no type
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        gauge(self._registry, "build_info", "1, with the version of the server", "version").labels(
            version(if_not_installed="unknown")
        ).set(1)
        self.requests = _Requests(self._registry)
        states, places = StateSeries(self._registry), PlaceSeries(self._registry)
        self.engines = _Engines(self._registry, states, places)
        self.gauges = _Gauges(self._registry, states, places)

    def text(self) -> bytes:
        """Return all series in Prometheus' text format (`CONTENT_TYPE`)."""
        return generate_latest(self._registry)


class _Requests:
    """The series of requests and their answers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._ended = counter(
            registry, "requests", "Requests by their outcome", "route", "model", "outcome"
        )
        self._seconds = histogram(
            registry,
            "request_seconds",
            "Duration of requests that were answered",
            REQUEST_BUCKETS,
            "route",
            "model",
        )
        self._first_token = histogram(
            registry,
            "time_to_first_token_seconds",
            "Time from a request to its first token",
            REQUEST_BUCKETS,
            "route",
            "model",
        )
        self._queue = histogram(
            registry,
            "queue_seconds",
            "Time from a request until the engine ran it, with the load of its model",
            REQUEST_BUCKETS,
            "route",
            "model",
        )
        self._per_token = histogram(
            registry,
            "time_per_output_token_seconds",
            "Mean time from one token of an answer to the next",
            PASS_BUCKETS,
            "route",
            "model",
        )
        self._prompt = counter(
            registry, "prompt_tokens", "Tokens of prompts that the engine began", "model"
        )
        self._cached = counter(
            registry, "cached_prompt_tokens", "Tokens of prompts whose KV was reused", "model"
        )
        self._completion = counter(
            registry,
            "completion_tokens",
            "Tokens generated, also for requests that failed or whose client left",
            "model",
        )

    def count(self, measured: Measurement) -> None:
        """Count a request that has ended, with or without success, if it generates text."""
        route, model = measured.route, measured.model
        if not route:
            return
        self._ended.labels(route, model, measured.outcome).inc()
        if measured.wait.is_over:
            self._queue.labels(route, model).observe(measured.wait.milliseconds / 1e3)
        if measured.first_token_s is not None:
            self._first_token.labels(route, model).observe(measured.first_token_s)
        if measured.totals is not None:
            if not measured.is_of_peer:  # there it counts: sums over servers have each token once
                self._count_tokens(model, measured.totals)
            if measured.totals.is_complete:
                self._seconds.labels(route, model).observe(measured.seconds)
            if (per_token := measured.totals.seconds_per_token) is not None:
                self._per_token.labels(route, model).observe(per_token)

    def _count_tokens(self, model: str, totals: Totals) -> None:
        """Count what the engine has worked for, whether or not the client got it."""
        self._completion.labels(model).inc(totals.num_generated)
        self._prompt.labels(model).inc(totals.num_begun)
        self._cached.labels(model).inc(totals.num_begun_cached)


class _Checks:
    """The series of what is computed or read again in idle time, to be compared."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._positions = counter(
            registry, "audit_positions", "Emitted tokens checked against plain decoding", "model"
        )
        self._mismatches = counter(
            registry, "audit_mismatches", "Checked tokens that plain decoding did not emit", "model"
        )
        self._checked = counter(
            registry, "recheck_bytes", "Packed weights whose checksums were compared again", "model"
        )
        self._damaged = counter(
            registry,
            "damaged_units",
            "Damage found in packed weights: repaired by packing a unit again, or not",
            "model",
            "repaired",
        )

    def begin(self, model: str) -> None:
        """Make the counters of a loaded model appear as 0 instead of missing."""
        for series in (self._positions, self._mismatches, self._checked):
            series.labels(model)
        for repaired in ("yes", "no"):
            self._damaged.labels(model, repaired)

    def count_audit(self, model: str, audited: Audited) -> None:
        """Count the audit of a finished answer."""
        self._positions.labels(model).inc(audited.positions)
        self._mismatches.labels(model).inc(audited.mismatches)

    def count_weights(self, model: str, checked: WeightsChecked) -> None:
        """Count the bytes of a check of packed weights, and the damage that was found."""
        self._checked.labels(model).inc(checked.nbytes)
        self._damaged.labels(model, "yes").inc(checked.repaired)
        self._damaged.labels(model, "no").inc(checked.unrepaired)


class _Engines:
    """The series of engine processes: passes, drafts, audits and restarts."""

    def __init__(
        self, registry: CollectorRegistry, states: StateSeries, places: PlaceSeries
    ) -> None:
        self._states, self._places = states, places
        self._disk = DiskSeries(registry)
        self._checks = _Checks(registry)
        self._passes = histogram(
            registry, "pass_seconds", "Duration of passes over the target", PASS_BUCKETS, "model"
        )
        self._rows = counter(
            registry, "pass_rows", "Rows of passes, of prompts and of trees", "model", "kind"
        )
        self._emitted = counter(registry, "pass_tokens", "Tokens that passes emitted", "model")
        self._drafted = counter(
            registry, "drafted_rows", "Drafted rows that were checked", "model", "source"
        )
        self._accepted = counter(
            registry, "accepted_rows", "Drafted rows the target agreed with", "model", "source"
        )
        self._undrafted = counter(
            registry,
            "undrafted_sequences",
            "Sequences in passes that got no draft because it would not pay",
            "model",
        )
        self._draft = counter(
            registry,
            "draft_seconds",
            "Time of drafting: before passes (visible), and while weights travel (ahead)",
            "model",
            "when",
        )
        self._stall = counter(
            registry,
            "stall_seconds",
            "Time the target did not compute: it waited for weights (copy), for the draft, or for "
            "the host",
            "model",
            "cause",
        )
        self._bytes = counter(registry, "link_bytes", "Bytes of weights that were copied", "model")
        self._restarts = counter(
            registry, "engine_restarts", "Engine processes that died and were replaced", "model"
        )
        self._resumed = counter(
            registry, "streams_resumed", "Answers that went on after a restart", "model"
        )

    def begin(self, model: str) -> None:
        """Make the rare events of a loaded model appear as 0 instead of missing."""
        for series in (self._restarts, self._resumed):
            series.labels(model)
        self._checks.begin(model)
        self._places.begin(model)
        self._disk.begin(model)

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
        self._checks.count_audit(model, audited)

    def count_weights_check(self, model: str, checked: WeightsChecked) -> None:
        """Count the bytes of a check of packed weights, and the damage that was found."""
        self._checks.count_weights(model, checked)

    def count_replan(self, model: str, moved: Replanned) -> None:
        """Count that units of weights have moved."""
        self._places.count(model, moved)

    def count_kv_disk(self, model: str, stats: KVDiskStats) -> None:
        """Count what was read and written of the idle KV on disk."""
        self._disk.count(model, stats)

    def count_restart(self, model: str) -> None:
        """Count an engine process that died and is replaced."""
        self._restarts.labels(model).inc()

    def count_resumed(self, model: str) -> None:
        """Count an answer that goes on in another engine process."""
        self._resumed.labels(model).inc()


class _Gauges:
    """The series that are set anew for each scrape."""

    def __init__(
        self, registry: CollectorRegistry, states: StateSeries, places: PlaceSeries
    ) -> None:
        self._states, self._places = states, places
        self._model_loaded = gauge(registry, "model_loaded", "1 if the model is loaded", "model")
        self._waiting = gauge(registry, "requests_waiting", "Requests waiting for their model")
        self._sequences = gauge(
            registry, "sequences_waiting", "Sequences in the engine waiting for a pass"
        )
        self._running = gauge(
            registry, "requests_in_engine", "Requests the engine has, waiting or running", "model"
        )
        self._speed = gauge(
            registry,
            "link_bytes_per_second",
            "Bytes of weights that were copied in the latest pass, by its duration",
            "model",
        )
        self._limit = gauge(
            registry, "link_limit_bytes_per_second", "Measured bandwidth of the link", "model"
        )
        self._bits = gauge(
            registry, "link_bits_per_weight", "Bits in which one weight travels", "model"
        )
        self._pages = gauge(registry, "kv_pages", "Pages of the KV pool", "model")
        self._used = gauge(registry, "kv_pages_used", "KV pages that sequences hold", "model")
        self._peers = PeerGauges(registry)

    def set(self, status: ServerStatus) -> None:
        """Set all gauges to the present figures."""
        for model in status["models"]:
            self._model_loaded.labels(model["id"]).set(model["state"] == "loaded")
        self._places.set(status["models"])
        self._peers.set(status["peers"], status["together"])
        self._waiting.set(status["queue"]["waiting_for_model"])
        self._sequences.set(status["queue"]["waiting_for_pass"])
        own = (self._running, self._speed, self._limit, self._bits, self._pages, self._used)
        for series in own:
            series.clear()
        self._states.clear()
        engine = status["engine"]
        if engine is not None:
            model_id = engine["model"]
            self._running.labels(model_id).set(status["queue"]["in_engine"])
            self._limit.labels(model_id).set(BYTES_PER_GB * engine["link_limit_gbps"])
            self._bits.labels(model_id).set(engine["link_bits_per_weight"])
            self._pages.labels(model_id).set(engine["kv_pages"])
            self._used.labels(model_id).set(engine["kv_pages_used"])
            self._speed.labels(model_id).set(BYTES_PER_GB * engine["link_gbps"])
            if engine["states"] is not None:
                self._states.set(model_id, engine["states"])
