"""GET /health: the server lives. GET /ready: a model is loaded."""

from fastapi import Request
from starlette.responses import JSONResponse, Response

from server.errors import ApiError
from server.http.api import Api
from server.http.failures import error_response
from server.http.state import state_of
from server.schemas.answers import Status

api = Api(prefixes=("", "/v1"))


@api.get("/health")
async def health() -> Status:
    """Answers as long as the server does, without a key."""
    return {"status": "ok"}


@api.get("/ready", Status)
async def ready(request: Request) -> Response:
    """200 when a model serves, else 503 (which is no failure: nothing is logged)."""
    if state_of(request).models.ready is None:
        return error_response(ApiError.unavailable("No model is loaded.", "model_loading"))
    return JSONResponse({"status": "ready"})
