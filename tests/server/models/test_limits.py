"""POST /v1/models/NAME/limits: the memory of the loaded model is lowered and raised."""

from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.moves import LimitMemory, Replanned
from tests.server.conftest import MakeApp, chat, client_of, error_of
from tests.server.fake_engine import FakeEngines
from tests.server.http.routes.test_status import status_of
from tests.server.models.test_unloading import load, unload


async def limit(client: httpx.AsyncClient, name: str = "main", **fields: Any) -> httpx.Response:
    return await client.post(f"/v1/models/{name}/limits", json=fields)


async def series(client: httpx.AsyncClient, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a series by the values of its labels, in the order of their names."""
    text = (await client.get("/metrics")).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {
        tuple(v for _, v in sorted(s.labels.items())): s.value for s in samples if s.name == name
    }


async def test_limits_reach_the_engine_of_the_loaded_model(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await load(client)
    for fields, want in (
        ({"device": "6GiB"}, LimitMemory(device=6 << 30)),
        ({"device": 1 << 20, "ram": "1GB"}, LimitMemory(device=1 << 20, ram=10**9)),
        ({"ram": None}, LimitMemory()),
        ({}, LimitMemory()),
    ):
        response = await limit(client, "gpt-x", **fields)
        assert (response.json()["id"], response.json()["state"]) == ("main", "loaded")
        assert engines.engine.limits == want


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"device": 0}, "device"),
        ({"device": -5}, "device"),
        ({"device": True}, "device"),
        ({"ram": "much"}, "ram"),
        ({"ram": "0GiB"}, "ram"),
        ({"ram": 2**60}, "ram"),
        ({"device": [1]}, "device"),
        ({"rma": "4MiB"}, "rma"),
    ],
)
async def test_what_is_no_size_is_refused(
    client: httpx.AsyncClient, engines: FakeEngines, fields: dict[str, Any], param: str
) -> None:
    await load(client)
    assert error_of(await limit(client, **fields), 400)["param"] == param
    assert engines.engine.limits is None


async def test_only_a_model_in_memory_has_limits(client: httpx.AsyncClient) -> None:
    error = error_of(await limit(client, device=1 << 30), 409)
    assert error["code"] == "model_not_loaded" and "load it first" in error["message"]
    await load(client)
    error_of(await limit(client, "org/other", device=1 << 30), 409)
    error_of(await limit(client, "nobody", device=1 << 30), 404)
    await unload(client)
    error_of(await limit(client, device=1 << 30), 409)


async def test_no_page_of_another_host_sets_limits(make_app: MakeApp) -> None:
    async with client_of(make_app(cors_origins=("https://chat.example",))) as client:
        await load(client)
        headers = {"origin": "https://chat.example"}
        response = await client.post("/v1/models/main/limits", json={"device": 1}, headers=headers)
        assert error_of(response, 403)["code"] == "origin_not_allowed"


async def test_moves_are_shown_in_the_status_and_counted(
    client: httpx.AsyncClient, engines: FakeEngines
) -> None:
    await chat(client)
    model = (await status_of(client))["models"][0]
    assert model["tier_bytes"] == {"ram": 500, "resident": 300}
    replans = await series(client, "understudy_replans_total")
    assert replans == {("main", "device"): 0, ("main", "ram"): 0, ("main", "freed"): 0}
    engines.engine.on_replan(Replanned("device", "less", (("ram", 8),), (("ram", 800),)))
    model = (await status_of(client))["models"][0]
    assert (model["plan"], model["tiers"], model["tier_bytes"]) == (
        "less",
        {"ram": 8},
        {"ram": 800},
    )
    assert (await series(client, "understudy_replans_total"))["main", "device"] == 1
    weights = await series(client, "understudy_weight_bytes")
    assert weights == {("main", "resident"): 0, ("main", "ram"): 800, ("main", "disk"): 0}
    await unload(client)
    assert await series(client, "understudy_weight_bytes") == {}
