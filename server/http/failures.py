"""The answers to requests that fail, in the format of the API whose path was requested."""

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import Scope

from engine.errors import EngineError, escaped
from engine.log_lines import of_request
from server.errors import ApiError, as_api_error
from server.http.api import Api, openai_error
from server.http.measure import measurement_of

log = logging.getLogger("understudy")

FIELD = re.compile(r"[a-z_]{1,40}|[0-9]{1,9}")  # the log has no other keys that a body may have


def error_response(failure: ApiError, body: Mapping[str, Any] | None = None) -> JSONResponse:
    """Return the answer to a failed request: `body`, or else an error in OpenAI's format."""
    content = failure.body() if body is None else body
    return JSONResponse(content, status_code=failure.status, headers=failure.headers)


class Failures:
    """The exception handlers of the app, which answer each failure in the format of its API."""

    def __init__(self, apis: Iterable[Api]) -> None:
        apis = list(apis)
        self._shapes = [
            (f"{prefix}{path}", api.error_body)
            for api in apis
            for prefix in api.prefixes
            for path in api.paths
        ]
        self._known_paths = ", ".join(
            sorted(
                f"{api.prefixes[0]}{path.replace(':path}', '}')}"  # the form of `/openapi.json`
                for api in apis
                for path in api.paths
            )
        )

    def install(self, app: FastAPI) -> None:
        """Make these the exception handlers of `app`."""
        app.add_exception_handler(ApiError, self._on_failure)
        app.add_exception_handler(EngineError, self._on_failure)
        app.add_exception_handler(HTTPException, self._on_http)
        app.add_exception_handler(Exception, self._on_bug)

    def response(self, failure: ApiError, scope: Scope) -> JSONResponse:
        """Return the answer to a failed request, in the format of the API that has its path."""
        path: str = scope["path"]
        shape = next((shape for own, shape in self._shapes if path.startswith(own)), openai_error)
        return error_response(failure, shape(failure, scope["state"]["request_id"]))

    async def _on_failure(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ApiError | EngineError)
        failure = as_api_error(error)
        measurement_of(request).fail(failure.code, failure.status)
        log_failure(failure)
        return self.response(failure, request.scope)

    async def _on_http(self, request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        url = f"{request.method} {request.url.path}"
        headers, allowed = dict(error.headers or {}), ""
        if error.status_code == 405:
            methods = set(headers.get("Allow", "").split(", "))
            if "GET" in methods:
                methods.add("HEAD")  # which is answered wherever GET is
            headers["Allow"] = allowed = ", ".join(sorted(methods))
        messages: dict[int, tuple[str, str | None]] = {
            404: (f"Unknown URL: {url}. There are: {self._known_paths}.", "unknown_url"),
            405: (f"Method not allowed: {url}. This URL takes: {allowed}.", "method_not_allowed"),
        }
        message, code = messages.get(error.status_code, (str(error.detail), None))
        failure = ApiError(message, code=code, status=error.status_code, headers=headers)
        return self.response(failure, request.scope)

    async def _on_bug(self, request: Request, error: Exception) -> JSONResponse:
        """Return the answer to an unexpected exception. Only the log has its traceback.

        The web server closes the connection after it.
        """
        request_id = request.state.request_id
        message = f"Internal error; the server's log has the details under {request_id}."
        headers = {"x-request-id": request_id, "connection": "close"}
        failure = ApiError(message, code="internal_error", status=500, headers=headers)
        return self.response(failure, request.scope)


def log_failure(failure: ApiError, *, request_id: str = "", quotes_body: bool = True) -> None:
    """Write one line about a failed request to the log.

    The log has nothing of prompts. So where the message may quote the body of the request, the log
    has the code and the field instead; messages about the server itself are logged.

    Args:
        request_id: given where no task answers the request.
        quotes_body: whether the body was read.
    """
    if failure.status >= 500 or not quotes_body:
        reason = escaped(failure.message)
    else:
        reason = failure.code or failure.type
        if failure.param:
            steps = failure.param.split(".")
            field = ".".join(step if FIELD.fullmatch(step) else "*" for step in steps)
            reason += f" ({field})"
    level = logging.WARNING if failure.status >= 500 else logging.INFO
    log.log(level, "%d %s", failure.status, reason, extra=of_request(request_id))
