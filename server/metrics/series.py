"""How the series of `/metrics` are made."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


def counter(registry: CollectorRegistry, name: str, what: str, *labels: str) -> Counter:
    """Return a counter, to whose name `_total` is added."""
    return Counter(f"understudy_{name}", what, labels, registry=registry)


def gauge(registry: CollectorRegistry, name: str, what: str, *labels: str) -> Gauge:
    """Return a gauge."""
    return Gauge(f"understudy_{name}", what, labels, registry=registry)


def histogram(
    registry: CollectorRegistry, name: str, what: str, buckets: tuple[float, ...], *labels: str
) -> Histogram:
    """Return a histogram of seconds."""
    return Histogram(f"understudy_{name}", what, labels, registry=registry, buckets=buckets)
