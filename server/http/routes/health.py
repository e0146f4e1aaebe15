"""GET /health: the server lives. GET /ready: a model is loaded. Both are 503 when it stops."""

from fastapi import Request
from starlette.responses import JSONResponse, Response

from server.errors import ApiError
from server.http.api import Api
from server.http.failures import error_response
from server.http.in_flight import stopping
from server.http.state import state_of
from server.schemas.answers import Status

api = Api(prefixes=("", "/v1"))


@api.get("/health", Status)
async def health(request: Request) -> Response:
    """Answers as long as the server does, without a key; 503 once it is told to stop."""
    if state_of(request).in_flight.is_stopping:
        return JSONResponse({"status": "stopping"}, status_code=503)
    return JSONResponse({"status": "ok"})


@api.get("/ready", Status)
async def ready(request: Request) -> Response:
    """200 when a model serves, else 503 (which is no failure: nothing is logged)."""
    state = state_of(request)
    if state.in_flight.is_stopping:
        return error_response(stopping())
    if state.models.ready is None:
        return error_response(ApiError.unavailable("No model is loaded.", "model_loading"))
    return JSONResponse({"status": "ready"})
