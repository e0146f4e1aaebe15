"""GET /health: the server lives. GET /ready: a model is loaded."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from server.errors import ApiError
from server.http.openapi import ERRORS
from server.http.state import state_of
from server.schemas.answers import Status

router = APIRouter()


@router.get("/health", responses=ERRORS)
async def health() -> Status:
    """Answers as long as the server does, without a key."""
    return {"status": "ok"}


@router.get("/ready", responses={200: {"model": Status}, **ERRORS}, response_model=None)
async def ready(request: Request) -> Response:
    """200 when a model serves, else 503 (which is no failure: nothing is logged)."""
    if state_of(request).models.ready is None:
        return ApiError.unavailable("No model is loaded.", "model_loading").response()
    return JSONResponse({"status": "ready"})
