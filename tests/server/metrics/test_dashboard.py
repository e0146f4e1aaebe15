"""The dashboard in docker/ uses only series and labels that /metrics has, and the files fit."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from engine.messages import StateStats
from tests.server.conftest import MakeApp, chat, client_of
from tests.server.fake_engine import FakeEngines
from tests.server.metrics.test_prometheus import PASS

DOCKER = Path(__file__).parents[3] / "docker"
DASHBOARD: dict[str, Any] = json.loads((DOCKER / "grafana" / "understudy.json").read_text())
TOKEN = re.compile(
    r'"(?:[^"\\]|\\.)*"|\[[^]]*\]|(?P<braces>\{[^}]*\})|(?P<name>[a-zA-Z_:][a-zA-Z0-9_:]*)'
    r"|(?P<open>\()|(?P<other>[^\s])"
)
AGGREGATORS = ("sum", "max", "min", "avg", "count")
GROUPING = ("by", "without", "on", "ignoring", "group_left", "group_right")


def expressions() -> list[str]:
    panels = [
        target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", ())
    ]
    queries = [
        own["query"]["query"] for own in DASHBOARD["templating"]["list"] if own["name"] == "model"
    ]
    return [*panels, *queries]


def used_in(expression: str) -> tuple[set[str], set[str]]:
    """Return the metrics and the labels in a PromQL expression or a query of labels."""
    if found := re.fullmatch(r"label_values\((\w+), (\w+)\)", expression):
        return {found[1]}, {found[2]}
    metrics, labels = set[str](), set[str]()
    tokens = list(TOKEN.finditer(expression))
    is_grouping = False
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        if braces := token["braces"]:
            labels |= set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", braces))
        elif is_grouping:
            if token["name"]:
                labels.add(token["name"])
            is_grouping = token[0] != ")"
        elif token["name"] in GROUPING:
            is_grouping = True
        else:
            is_function = after is not None and bool(after["open"])
            if token["name"] and token["name"] not in AGGREGATORS and not is_function:
                metrics.add(token["name"])
    return metrics, labels


@pytest.mark.parametrize(
    ("expression", "metrics", "labels"),
    [
        (
            'sum by (a, b) (rate(one_total{c=~"$c", d!="x"}[5m])) / two',
            {"one_total", "two"},
            set("abcd"),
        ),
        ("histogram_quantile(0.5, sum by (le) (rate(one_bucket[5m])))", {"one_bucket"}, {"le"}),
        ("max(one) without (b)", {"one"}, {"b"}),
        ("label_values(one, a)", {"one"}, {"a"}),
    ],
)
def test_metrics_and_labels_are_found_in_expressions(
    expression: str, metrics: set[str], labels: set[str]
) -> None:
    assert used_in(expression) == (metrics, labels)


@pytest.fixture
async def samples(make_app: MakeApp, engines: FakeEngines) -> dict[str, set[str]]:
    """Return the labels by name of all samples of a server that has served requests."""
    engines.script.num_states = 3
    async with client_of(make_app()) as client:
        await chat(client)
        stats = StateStats(sequences=1, prefixes=1, nbytes=8, hits=1, evictions=1)
        engines.engine.on_pass(replace(PASS, states=stats))
        text = (await client.get("/metrics")).text
    return {sample.name: set(sample.labels) for sample in samples_of(text)}


def samples_of(text: str) -> Iterator[Any]:
    for family in text_string_to_metric_families(text):
        yield from family.samples


async def test_the_dashboard_uses_only_series_and_labels_that_there_are(
    samples: dict[str, set[str]],
) -> None:
    assert len(expressions()) > 20
    for expression in expressions():
        metrics, labels = used_in(expression)
        assert metrics and metrics <= set(samples), expression
        for metric in metrics:
            assert labels <= samples[metric], (expression, metric)


async def test_series_follow_the_conventions_of_prometheus(client: httpx.AsyncClient) -> None:
    await chat(client)
    for family in text_string_to_metric_families((await client.get("/metrics")).text):
        if not family.name.startswith("understudy_"):
            continue
        assert family.documentation, family.name
        assert not re.search(r"(gbps|_ms|_mb|_percent|milli)", family.name), "base units only"
        has_total = all(sample.name.endswith("_total") for sample in family.samples)
        assert (
            has_total == (family.type == "counter" and bool(family.samples)) or not family.samples
        )
        if family.type == "histogram":
            assert family.name.endswith("_seconds"), family.name
            bounds = [float(s.labels["le"]) for s in family.samples if "le" in s.labels]
            assert not bounds or sorted(bounds)[-2] >= 120, "answers take minutes"
        labels = {label for sample in family.samples for label in sample.labels}
        assert labels <= {
            *("model", "route", "outcome", "kind", "source", "cause", "when", "of", "repaired"),
            *("le", "version", "reason", "tier"),
        }, "labels have few values"


def test_compose_mounts_files_that_there_are() -> None:
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    mounted = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service["volumes"]
        if volume.startswith(".")
    ]
    assert len(mounted) == 5
    assert all((DOCKER / path).exists() for path in mounted)
    provider = yaml.safe_load((DOCKER / "grafana/provisioning/dashboards.yaml").read_text())
    (folder,) = (own["options"]["path"] for own in provider["providers"])
    assert any(f":{folder}/understudy.json" in volume for volume in services["grafana"]["volumes"])
    scrape = yaml.safe_load((DOCKER / "prometheus.yaml").read_text())["scrape_configs"]
    assert scrape[0]["static_configs"] == [{"targets": ["understudy:8000"]}]
