"""The schema at /openapi.json: bodies are read by hand, so their schemas are added by hand."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from server.schemas.answers import ChatChunk, ErrorBody, TextCompletion
from server.schemas.chat import ChatRequest
from server.schemas.completions import CompletionRequest
from server.schemas.message_answers import MessageErrorBody, MessageEvent
from server.schemas.message_bodies import CountTokensRequest, MessagesRequest
from server.schemas.response_answers import ResponseEvent
from server.schemas.response_bodies import ResponseRequest
from server.schemas.tokens import DetokenizeRequest, TokenizeRequest

Responses = dict[int | str, dict[str, Any]]


def _errors(body: Any) -> Responses:
    return {
        "4XX": {"model": body, "description": "The request cannot be served as asked"},
        "5XX": {"model": body, "description": "The server cannot serve it now"},
    }


ERRORS = _errors(ErrorBody)
MESSAGE_ERRORS = _errors(MessageErrorBody)
REFERENCE = "#/components/schemas/{model}"
BY_HAND: tuple[Any, ...] = (
    ChatRequest,
    CompletionRequest,
    ResponseRequest,
    MessagesRequest,
    CountTokensRequest,
    TokenizeRequest,
    DetokenizeRequest,
    ChatChunk,
    TextCompletion,
    ResponseEvent,
    MessageEvent,
)


def describe(
    body: type[BaseModel], whole: Any, chunk: Any = None, errors: Responses = ERRORS
) -> dict[str, Any]:
    """Arguments of a route that reads `body` and answers `whole`, or events of `chunk`."""
    answer: dict[str, Any] = {"model": whole, "description": "Whole"}
    if chunk is not None:
        events = {"text/event-stream": {"schema": _reference(chunk)}}
        answer |= {"description": "Whole, or events", "content": events}
    return {
        "response_model": None,
        "responses": {200: answer, **errors},
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
