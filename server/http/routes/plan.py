"""The route POST /v1/plan: what `understudy plan --json` prints, for models of the registry."""

from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.chat.received import Received
from server.errors import ApiError
from server.http.api import Api
from server.http.body import body_of
from server.http.respond import pace_of
from server.http.sizes import size_of
from server.http.state import state_of
from server.http.stream import whole_answer
from server.models.plan_worker import Machine
from server.schemas.plans import Plan, PlanRequest

api = Api()


@api.post("/plan", PlanRequest, Plan)
async def plan_model(
    request: Request, received: Annotated[Received[PlanRequest], Depends(body_of(PlanRequest))]
) -> Response:
    """Plan where a model's weights would be on a machine, and forecast its speed."""
    state, body = state_of(request), received.body
    entry = state.registry.named(body.model)
    if body.device_gbps is not None and body.device_memory is None:
        message = "'device_gbps' is of another card: give its 'device_memory' too."
        raise ApiError(message, code="invalid_value", param="device_gbps")
    machine = Machine(
        size_of("device_memory", body.device_memory),
        size_of("ram", body.ram),
        body.link_gbps,
        body.disk_gbps,
        body.device_gbps,
        body.users,
    )

    async def plans() -> AsyncGenerator[str, None]:
        yield await state.planner.plan(entry, machine)

    return await whole_answer(request, plans(), _json_response, pace_of(request))


def _json_response(made: list[str]) -> Response:
    return Response(made[0], media_type="application/json")
