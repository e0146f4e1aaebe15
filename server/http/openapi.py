"""The document at /openapi.json. FastAPI reads no bodies here, so their schemas are added to it."""

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, TypeAdapter

from server.http.auth import OPEN_PATHS

REFERENCE = "#/components/schemas/{model}"
REQUEST_ID = {
    "description": "The request's own id, else a new one; the log has it too",
    "schema": {"type": "string"},
}
RETRY_AFTER = {
    "description": "Seconds to wait before another try, sent with 503",
    "schema": {"type": "string"},
}
QUEUE_MS = {
    "description": "Milliseconds until the request ran, or until its stream opened",
    "schema": {"type": "string", "pattern": "^[0-9]+$"},
}

IGNORED = {
    "description": "What of the request was left out, such as `tools[7] web_search`",
    "schema": {"type": "string"},
}


def _reference(kind: Any) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=kind.__name__)}


def describe_errors(error: Any) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route whose errors have the type `error`."""
    content = {"application/json": {"schema": _reference(error)}}

    def failure(description: str, **headers: dict[str, Any]) -> dict[str, Any]:
        headers["x-request-id"] = REQUEST_ID
        return {"description": description, "content": content, "headers": headers}

    return {
        401: failure("No valid API key", **{"WWW-Authenticate": {"schema": {"type": "string"}}}),
        "4XX": failure("The request cannot be served as asked; the field is named"),
        "5XX": failure("The server cannot serve it now", **{"Retry-After": RETRY_AFTER}),
    }


KEYS: dict[str, dict[str, str]] = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}
BOUNDS = {"ge": "minimum", "le": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}


def describe(
    body: type[BaseModel] | None, whole: Any, event: Any, error: Any, *, may_be_empty: bool
) -> dict[str, Any]:
    """Return the arguments of FastAPI's decorator for a route.

    Args:
        body: the type of the request's body, None for a route that reads none.
        may_be_empty: whether an empty body means one without fields.
        whole: the type of a whole answer.
        event: the type of a stream's events, None for a route that never streams.
        error: the type of an error's body.
    """
    headers = {"x-request-id": REQUEST_ID, "x-understudy-ignored": IGNORED}
    answer: dict[str, Any] = {"model": whole, "description": "Whole answer", "headers": headers}
    if event is not None:
        answer["description"] = "Whole answer, or a stream of events with `stream: true`"
        answer["headers"] = headers | {"x-understudy-queue-ms": QUEUE_MS}
        answer["content"] = {"text/event-stream": {"schema": _describe_event(event, error)}}
    described: dict[str, Any] = {
        "response_model": None,
        "responses": {200: answer, **describe_errors(error)},
    }
    if body is not None:
        content = {"application/json": {"schema": _reference(body)}}
        request_body = {"required": not may_be_empty, "content": content}
        described["openapi_extra"] = {"requestBody": request_body}
    return described


def _describe_event(event: Any, error: Any) -> dict[str, Any]:
    """Return the schema of a server-sent event as an object of its fields, which tools expect.

    The data of an event is a JSON text, or [DONE], with which OpenAI's streams end.
    """
    content = {"anyOf": [_reference(event), _reference(error)]}
    data = {"type": "string", "contentMediaType": "application/json", "contentSchema": content}
    return {
        "type": "object",
        "required": ["data"],
        "anyOf": [{"properties": {"data": kind}} for kind in ({"const": "[DONE]"}, data)],
    }


def _rename_limits(schema: Any) -> None:
    """Give the limits of `Int` the names of JSON Schema, in place of pydantic's own names."""
    if isinstance(schema, dict):
        if schema.get("type") in ("integer", "number"):
            for own, standard in BOUNDS.items():
                if own in schema:
                    schema[standard] = schema.pop(own)
        schema = list(schema.values())
    if isinstance(schema, list):
        for inner in schema:
            _rename_limits(inner)


def _require_keys(paths: dict[str, dict[str, Any]]) -> None:
    """State that each operation but /health requires one of `KEYS`."""
    for path, operations in paths.items():
        if path not in OPEN_PATHS:
            for operation in operations.values():
                operation["security"] = [{name: []} for name in KEYS]


def document(app: FastAPI, schemas: Iterable[Any], *, has_keys: bool) -> dict[str, Any]:
    """Return the OpenAPI document of an app, with the schemas that `describe` refers to.

    Args:
        schemas: the types of bodies, events and errors, which FastAPI does not find.
        has_keys: whether requests need an API key.
    """
    schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
    _, by_hand = TypeAdapter.json_schemas(
        [(kind.__name__, "validation", TypeAdapter(kind)) for kind in dict.fromkeys(schemas)],
        ref_template=REFERENCE,
    )
    schema["components"]["schemas"] |= by_hand["$defs"]
    _rename_limits(schema["components"]["schemas"])
    if has_keys:
        schema["components"]["securitySchemes"] = KEYS
        _require_keys(schema["paths"])
    return schema
