"""The one shape of errors, and the doors where failures become answers."""

import logging
from collections.abc import Mapping
from typing import Self

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from engine.errors import (
    EngineDied,
    EngineError,
    ModelError,
    PassFailed,
    QueueFull,
    RequestError,
)
from server.metrics.measurement import measurement_of
from server.schemas.answers import ErrorBody
from server.schemas.message_answers import MessageErrorBody

log = logging.getLogger("understudy")

RETRY_AFTER_S = 5

MESSAGES_PATH = "/messages"  # with what lies below it: Anthropic's API
MESSAGE_ERRORS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}


class ApiError(Exception):
    """A failure with its HTTP status and the fields of the API's error object."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.status = status
        self.headers = dict(headers or {})

    @classmethod
    def missing(cls, param: str, message: str | None = None) -> Self:
        """A required field is not there."""
        text = message or f"Missing required parameter: '{param}'."
        return cls(text, code="missing_required_parameter", param=param)

    @classmethod
    def unavailable(cls, message: str, code: str) -> Self:
        """A 503 that is worth trying again."""
        return cls(message, code=code, status=503, headers={"Retry-After": str(RETRY_AFTER_S)})

    @property
    def type(self) -> str:
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> ErrorBody:
        return {
            "error": {
                "message": self.message,
                "type": self.type,
                "param": self.param,
                "code": self.code,
            }
        }

    def response(self, scope: Scope | None = None) -> JSONResponse:
        """The answer to a request, in the shape of the API whose path it asked for."""
        body: ErrorBody | MessageErrorBody = self.body()
        if scope is not None and scope["path"].removeprefix("/v1").startswith(MESSAGES_PATH):
            body = message_error(self, scope["state"]["request_id"])
        return JSONResponse(body, status_code=self.status, headers=self.headers)


def message_error(error: ApiError, request_id: str) -> MessageErrorBody:
    """A failure in Anthropic's shape; the message names the parameter."""
    kind = "api_error" if error.status >= 500 else "invalid_request_error"
    message = error.message
    if error.param is not None and error.param not in message:
        message = f"{error.param}: {message}"
    return {
        "type": "error",
        "error": {"type": MESSAGE_ERRORS.get(error.status, kind), "message": message},
        "request_id": request_id,
    }


def as_api_error(error: ApiError | EngineError) -> ApiError:
    """What a client is told of a failure."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(str(error), code=error.code, param=error.param)
        case QueueFull():
            return ApiError.unavailable(str(error), "queue_full")
        case EngineDied():
            return ApiError.unavailable(str(error), error.code)
        case PassFailed():
            return ApiError(str(error), code=error.code, status=500)
        case ModelError():
            return ApiError(str(error), code="model_load_failed", status=500)
        case _:
            return ApiError(str(error), code="engine_error", status=500)


def install(app: FastAPI) -> None:
    """Answer every failure of `app` in the one shape."""
    app.add_exception_handler(ApiError, _on_failure)
    app.add_exception_handler(EngineError, _on_failure)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)


async def _on_failure(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError | EngineError)
    failure = as_api_error(error)
    measurement_of(request).outcome = failure.code or ""
    log_failure(request.state.request_id, failure)
    return failure.response(request.scope)


async def _on_http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    url = f"{request.method} {request.url.path}"
    messages: dict[int, tuple[str, str | None]] = {
        404: (f"Unknown URL: {url}", "unknown_url"),
        405: (f"Method not allowed: {url}", "method_not_allowed"),
    }
    message, code = messages.get(error.status_code, (str(error.detail), None))
    failure = ApiError(message, code=code, status=error.status_code, headers=error.headers)
    return failure.response(request.scope)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    """A defect of ours: the traceback goes to the log, never to the client."""
    request_id = request.state.request_id
    message = f"Internal error; the server's log has the details under {request_id}."
    failure = ApiError(
        message, code="internal_error", status=500, headers={"x-request-id": request_id}
    )
    return failure.response(request.scope)


def log_failure(request_id: str, failure: ApiError) -> None:
    """One line about a request that failed."""
    level = logging.WARNING if failure.status >= 500 else logging.INFO
    log.log(level, "%s: %d %s", request_id, failure.status, _one_line(failure.message))


def _one_line(text: str) -> str:
    """Parts of the request stand in messages: nobody writes lines or colours into the log."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
