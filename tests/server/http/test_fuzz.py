"""No body of any route causes a 5xx, and every error has the format of its API."""

import logging
import os
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from tests.server.bodies import RIGHT, check, wrong_bodies
from tests.server.conftest import MakeApp

FUZZ = int(os.environ.get("FUZZ", "400"))  # bodies


@pytest.fixture
def transport(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> httpx.ASGITransport:
    monkeypatch.setattr(logging.getLogger("understudy"), "disabled", True)
    return httpx.ASGITransport(make_app(), raise_app_exceptions=False)


@pytest.mark.parametrize(("path", "body"), RIGHT)
async def test_valid_bodies_are_answered(client: httpx.AsyncClient, path: str, body: Any) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text


@settings(
    max_examples=FUZZ,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(wrong=wrong_bodies())
async def test_no_body_causes_a_5xx(transport: httpx.ASGITransport, wrong: tuple[str, Any]) -> None:
    path, body = wrong
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        check(path, body, await client.post(path, json=body))
