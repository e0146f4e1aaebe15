"""GET /health (the server runs) and GET /ready (a model is loaded); 503 while the server stops."""

from fastapi import Request
from starlette.responses import JSONResponse, Response

from server.errors import ApiError
from server.http.api import Api
from server.http.failures import error_response
from server.http.in_flight import stopping_error
from server.http.state import state_of
from server.schemas.answers import Status

api = Api(prefixes=("", "/v1"))


@api.get("/health", Status)
async def health(request: Request) -> Response:
    """Report that the server runs. It needs no key, and answers 503 while the server stops."""
    if state_of(request).in_flight.is_stopping:
        return JSONResponse({"status": "stopping"}, status_code=503)
    return JSONResponse({"status": "ok"})


@api.get("/ready", Status)
async def ready(request: Request) -> Response:
    """Report whether a model is loaded: 200, else 503, which is not logged as a failure."""
    state = state_of(request)
    if state.in_flight.is_stopping:
        return error_response(stopping_error())
    if state.models.ready is None:
        return error_response(ApiError.unavailable("No model is loaded.", "model_loading"))
    return JSONResponse({"status": "ready"})
