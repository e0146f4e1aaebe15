"""docs/api.md and docs/performance.md name every route and every metric."""

import re
from pathlib import Path

from fastapi.routing import APIRoute
from prometheus_client.parser import text_string_to_metric_families

from server.http.app import find_apis
from server.metrics.prometheus import Metrics

DOCS = Path(__file__).parents[2] / "docs"


def test_the_table_has_every_route() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    listed = {
        (method, path) for method, path in re.findall(r"^\| `(GET|POST) (\S+)` \|", text, re.M)
    }
    served = {
        (method, api.prefixes[0] + re.sub(r"\{\w+:path\}", "{id}", route.path))
        for api in find_apis()
        for route in api.router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert listed == served


def test_the_table_has_every_metric() -> None:
    text = (DOCS / "performance.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"`(understudy_\w+)`", text))
    assert "`process_*`" in text
    families = text_string_to_metric_families(Metrics().text().decode())
    served = {
        family.name + "_total" if family.type == "counter" else family.name
        for family in families
        if not family.name.startswith("process_")  # those of the client library
    }
    assert listed == served
