"""The schema at /openapi.json: bodies are read by hand, so their schemas are added by hand."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from server.schemas.answers import ChatChunk, ErrorBody, TextCompletion
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest

ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request cannot be served as asked"},
    "5XX": {"model": ErrorBody, "description": "The server cannot serve it now"},
}
REFERENCE = "#/components/schemas/{model}"
BY_HAND: tuple[Any, ...] = (ChatRequest, CompletionRequest, ChatChunk, TextCompletion)


def describe(body: type[BaseModel], whole: Any, chunk: Any) -> dict[str, Any]:
    """Arguments of a route that reads `body` and answers `whole`, or events of `chunk`."""
    events = {"text/event-stream": {"schema": _reference(chunk)}}
    return {
        "response_model": None,
        "responses": {
            200: {"model": whole, "description": "Whole, or events", "content": events},
            **ERRORS,
        },
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _reference(body)}},
            }
        },
    }


def _reference(kind: Any) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=kind.__name__)}


def install(app: FastAPI) -> None:
    """Have `app.openapi()` hold the schemas that `describe` refers to."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
            _, by_hand = TypeAdapter.json_schemas(
                [(kind.__name__, "validation", TypeAdapter(kind)) for kind in BY_HAND],
                ref_template=REFERENCE,
            )
            schema["components"]["schemas"] |= by_hand["$defs"]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way
