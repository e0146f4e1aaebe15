"""The series of what is kept in memory and on the disk: states, weights, and idle KV."""

from collections.abc import Sequence
from typing import get_args

from prometheus_client import CollectorRegistry

from engine.kv_disk_stats import KVDiskStats
from engine.messages import StateStats
from engine.moves import Reason, Replanned
from engine.spec import Tier
from server.metrics.series import counter, gauge
from server.schemas.status import ModelStatus, RecurrentStates


class StateSeries:
    """The series of the states of recurrent layers, for models that have some."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._hits = counter(
            registry, "state_hits", "Prompts that began with a stored state", "model"
        )
        self._evictions = counter(
            registry, "state_evictions", "Stored states of prefixes that were dropped", "model"
        )
        self._room = gauge(
            registry, "states", "States of recurrent layers that there is memory for", "model"
        )
        self._used = gauge(
            registry, "states_used", "States of sequences and of stored prefixes", "model", "of"
        )
        self._bytes = gauge(registry, "states_used_bytes", "Bytes of the states in use", "model")

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


class PlaceSeries:
    """The series of the places where weights are kept."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._replans = counter(
            registry,
            "replans",
            "Moves of weights between passes: the memory of the device or the RAM was short, or "
            "there was more again (freed)",
            "model",
            "reason",
        )
        self._bytes = gauge(
            registry, "weight_bytes", "Bytes of weights by where they are kept", "model", "tier"
        )

    def begin(self, model: str) -> None:
        """Make the moves of a loaded model appear as 0 instead of missing."""
        for reason in get_args(Reason):
            self._replans.labels(model, reason)

    def count(self, model: str, moved: Replanned) -> None:
        """Count that units of weights have moved."""
        self._replans.labels(model, moved.reason).inc()

    def set(self, models: Sequence[ModelStatus]) -> None:
        """Set the gauge to the present bytes of the model in memory."""
        self._bytes.clear()
        for model in models:
            if "tier_bytes" in model:
                for tier in get_args(Tier):
                    self._bytes.labels(model["id"], tier).set(model["tier_bytes"].get(tier, 0))


class DiskSeries:
    """The series of idle KV on disk."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._bytes = gauge(registry, "kv_disk_bytes", "Bytes of idle KV on disk, of all models")
        self._hits = counter(
            registry, "kv_disk_hits", "Prompts that began with KV from the disk", "model"
        )
        self._tokens = counter(
            registry, "kv_disk_tokens_read", "Tokens whose KV was read from the disk", "model"
        )
        self._written = counter(
            registry, "kv_disk_written_bytes", "Bytes of idle KV that were written", "model"
        )
        self._dropped = counter(
            registry,
            "kv_disk_dropped",
            "Pages and states that were not written for want of room or time",
            "model",
        )
        self._damaged = counter(
            registry, "kv_disk_damaged", "Files of idle KV that were damaged", "model"
        )

    def begin(self, model: str) -> None:
        """Make the counters of a loaded model appear as 0 instead of missing."""
        for series in (self._hits, self._tokens, self._written, self._dropped, self._damaged):
            series.labels(model)

    def count(self, model: str, stats: KVDiskStats) -> None:
        """Count what was read and written since the last call."""
        self._bytes.set(stats.nbytes)
        self._hits.labels(model).inc(stats.hits)
        self._tokens.labels(model).inc(stats.tokens)
        self._written.labels(model).inc(stats.written)
        self._dropped.labels(model).inc(stats.dropped)
        self._damaged.labels(model).inc(stats.damaged)
