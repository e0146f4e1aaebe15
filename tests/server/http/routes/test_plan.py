"""POST /v1/plan: plans of registered models, one at a time, in a process of their own."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.spec import ModelSpec, TargetSpec
from server.cli import main
from server.config.registry import ModelEntry, Registry
from server.config.settings import Settings
from server.http.app import create_app
from server.models import plan_worker, planner
from server.models.plan_worker import Compute
from server.models.planner import Planner
from tests.server.cli.test_plan_command import CARD, CONFIG, GIB
from tests.server.conftest import client_of, entry, error_of
from tests.server.fake_engine import FakeEngines
from tests.server.fake_text import FakeText
from tests.server.models import plan_targets

MACHINE = {
    "device_memory": 8 * GIB,
    "ram": 5 * GIB,
    "link_gbps": 2.0,
    "disk_gbps": 1.5,
    "device_gbps": 900.0,
    "users": 3,
}


@asynccontextmanager
async def planning(
    compute: Compute = plan_worker.compute,
    timeout: float = 60,
    keep: float = 60,
    entries: list[ModelEntry] | None = None,
) -> AsyncIterator[httpx.AsyncClient]:
    known = entries or [entry("main", aliases=("gpt-x",))]
    registry = Registry(known, known[0].id, strict=False)
    planner = Planner(compute, timeout, keep)
    app = create_app(Settings(), registry, FakeEngines(), text=FakeText(), planner=planner)
    async with client_of(app) as client:
        yield client
    assert planners() == []


def planners() -> list[BaseProcess]:
    """Return the processes that compute plans."""
    return [child for child in active_children() if child.name == "planner"]


async def ends(process: BaseProcess) -> None:
    while process.is_alive():
        await asyncio.sleep(0.001)


async def plan(client: httpx.AsyncClient, **body: Any) -> httpx.Response:
    return await client.post("/v1/plan", json={"model": "main", **body})


async def test_the_plan_is_that_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "seven-b"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.chdir(tmp_path)
    assert main.main(["plan", str(folder), *CARD, "--json"]) == 0
    want = json.loads(capsys.readouterr().out)
    known = [ModelEntry("seven-b", ModelSpec("seven-b", TargetSpec(str(folder))), 0)]
    async with planning(entries=known) as client:
        machine = {"device_memory": "8GiB", "ram": 24 * GIB, "link_gbps": 25}
        answer = await plan(client, model="seven-b", **machine)
    assert answer.status_code == 200, answer.text
    assert answer.json() == want


async def test_the_body_changes_the_machine() -> None:
    async with planning(plan_targets.echo) as client:
        nothing = dict.fromkeys(MACHINE)
        assert nothing.items() <= (await plan(client)).json().items()
        asked = {**MACHINE, "device_memory": "8GiB"}
        answer = (await plan(client, **asked, model="gpt-x")).json()
        assert answer["model_id"] == "main" and MACHINE.items() <= answer.items()


async def test_a_field_that_is_not_known_is_refused_with_the_known_ones() -> None:
    async with planning(plan_targets.echo) as client:
        error = error_of(await plan(client, device_memroy="8GiB"), 400)
        assert (error["param"], error["code"]) == ("device_memroy", "unknown_parameter")
        assert "The fields of this body are: model, device_memory, ram" in error["message"]


async def test_a_process_is_kept_for_the_next_plan_and_ends_when_none_comes() -> None:
    async with planning(plan_targets.echo) as client:
        first, second = [(await plan(client)).json()["process"] for _ in range(2)]
        assert first == second
        (process,) = planners()
        process.kill()
        await ends(process)
        assert (await plan(client)).json()["process"] != first
    async with planning(plan_targets.echo, keep=0) as client:
        await plan(client)
        while planners():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(("patience", "is_kept"), [(60, True), (0, False)])
async def test_a_plan_whose_client_has_left_goes_on_for_a_while(
    patience: float, is_kept: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    monkeypatch.setenv(plan_targets.GATE, str(gate))
    monkeypatch.setattr(planner, "ABANDONED_S", patience)
    async with planning(plan_targets.gated) as client:
        left = asyncio.create_task(plan(client))
        while not planners():
            await asyncio.sleep(0.001)
        first = planners()[0]
        left.cancel()
        await asyncio.wait([left])
        asked = asyncio.create_task(plan(client))
        if not is_kept:
            await ends(first)
        gate.touch()
        assert ((await asked).json()["process"] == first.pid) is is_kept


@pytest.mark.parametrize(
    ("compute", "status", "code", "words", "param"),
    [
        (plan_targets.too_large, 400, "does_not_fit", "'ram': 2 GiB are missing", "ram"),
        (plan_targets.unknown_family, 500, "model_load_failed", "no such family", "model"),
        (plan_targets.die, 500, "plan_failed", "ended early", None),
    ],
)
async def test_a_plan_that_fails_says_why(
    compute: Compute, status: int, code: str, words: str, param: str | None
) -> None:
    async with planning(compute) as client:
        error = error_of(await plan(client), status)
    assert error["code"] == code and words in error["message"] and error["param"] == param


async def test_a_plan_that_takes_too_long_is_ended() -> None:
    async with planning(plan_targets.hang, timeout=0.01) as client:
        assert error_of(await plan(client), 503)["code"] == "plan_timeout"


async def test_plans_are_computed_one_at_a_time_and_few_may_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(planner, "MAX_WAITING", 1)
    async with planning(plan_targets.hang) as client:
        asked = [asyncio.create_task(plan(client)) for _ in range(2)]
        while not planners():
            await asyncio.sleep(0.001)
        assert error_of(await plan(client), 503)["code"] == "queue_full"
        assert len(planners()) == 1
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("model", [None, 1]),
        ("device_memory", [0, -1, "8 apples", "0GiB", 2**51, "9999999TiB", 1.5, [], "\uff18GiB"]),
        ("ram", [0, "x", True, 1, "1KiB", 2**20 - 1]),
        ("link_gbps", [0, -1, "1", 1e9, 1e-9]),
        ("disk_gbps", [0, "fast", 9e-4]),
        ("device_gbps", [0, 500]),  # of which card?
        ("users", [0, 2000, 1.5]),
    ],
)
async def test_wrong_figures_are_refused(field: str, wrong: list[Any]) -> None:
    async with planning(plan_targets.die) as client:
        for value in wrong:
            param = error_of(await plan(client, **{field: value}), 400)["param"]
            assert param == field, value


async def test_only_models_of_the_registry_are_planned() -> None:
    async with planning(plan_targets.die) as client:
        for name in ("other/model", "/etc", ""):
            assert error_of(await plan(client, model=name), 404)["code"] == "model_not_found"
        error_of(await client.post("/v1/plan", json={}), 400)
