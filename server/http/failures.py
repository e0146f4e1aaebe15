"""Where failures become answers, in the shape of the API whose path was asked for."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from engine.errors import EngineError
from server.errors import ApiError, as_api_error
from server.http.api import Api, openai_error
from server.http.measure import measurement_of

log = logging.getLogger("understudy")


def error_response(failure: ApiError, body: Mapping[str, Any] | None = None) -> JSONResponse:
    """Return the answer to a request that failed: `body`, or OpenAI's shape."""
    content = failure.body() if body is None else body
    return JSONResponse(content, status_code=failure.status, headers=failure.headers)


class Failures:
    """Answers requests that fail, each in the shape of its API."""

    def __init__(self, apis: Iterable[Api]) -> None:
        self._shapes = [
            (f"{prefix}{path}", api.error_body)
            for api in apis
            for prefix in api.prefixes
            for path in api.paths
        ]

    def install(self, app: FastAPI) -> None:
        """Answer every failure of `app`."""
        app.add_exception_handler(ApiError, self._on_failure)
        app.add_exception_handler(EngineError, self._on_failure)
        app.add_exception_handler(HTTPException, self._on_http)
        app.add_exception_handler(Exception, self._on_bug)

    def response(self, failure: ApiError, scope: Scope) -> JSONResponse:
        """Return the answer to a failed request, in the shape of the API that its path is of."""
        path: str = scope["path"]
        shape = next((shape for own, shape in self._shapes if path.startswith(own)), openai_error)
        return error_response(failure, shape(failure, scope["state"]["request_id"]))

    async def _on_failure(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError | EngineError)
        failure = as_api_error(error)
        measurement_of(request).fail(failure.code)
        log_failure(request.state.request_id, failure)
        return self.response(failure, request.scope)

    async def _on_http(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        url = f"{request.method} {request.url.path}"
        messages: dict[int, tuple[str, str | None]] = {
            404: (f"Unknown URL: {url}", "unknown_url"),
            405: (f"Method not allowed: {url}", "method_not_allowed"),
        }
        message, code = messages.get(error.status_code, (str(error.detail), None))
        failure = ApiError(message, code=code, status=error.status_code, headers=error.headers)
        return self.response(failure, request.scope)

    async def _on_bug(self, request: Request, error: Exception) -> JSONResponse:
        """Answer a defect of ours: the traceback goes to the log, never to the client."""
        request_id = request.state.request_id
        message = f"Internal error; the server's log has the details under {request_id}."
        failure = ApiError(
            message, code="internal_error", status=500, headers={"x-request-id": request_id}
        )
        return self.response(failure, request.scope)


def log_failure(request_id: str, failure: ApiError) -> None:
    """Write one line about a request that failed."""
    level = logging.WARNING if failure.status >= 500 else logging.INFO
    log.log(level, "%s: %d %s", request_id, failure.status, _one_line(failure.message))


def _one_line(text: str) -> str:
    """Return a message without line ends and colours: it may hold parts of the request."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
