"""The declaration of one API: its routes, the schemas they name, and the form of its errors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel

from server.errors import ApiError, ErrorBody
from server.http.openapi import describe, describe_errors

RouteT = TypeVar("RouteT", bound=Callable[..., Any])

ErrorShape = Callable[[ApiError, str], Mapping[str, Any]]
"""A function that returns the body of an error, given the failure and the id of the request."""


def openai_error(failure: ApiError, _request_id: str) -> ErrorBody:
    """Return the body of an error in OpenAI's format."""
    return failure.body()


class Api:
    """The routes of one module of `server/http/routes`, which assigns it to the name `api`.

    The app finds it under that name. It determines everything else that depends on paths: the
    schemas of /openapi.json, the routes that /metrics counts, and the form of errors.

    Args:
        prefixes: the path prefixes of all routes; /openapi.json shows only the first.
        error: the type of an error's body.
        error_body: returns the body of an error, on all paths that begin with that of a route.
    """

    def __init__(
        self,
        *,
        prefixes: Sequence[str] = ("/v1", ""),
        error: Any = ErrorBody,
        error_body: ErrorShape = openai_error,
    ) -> None:
        self.prefixes = prefixes
        self.error_body = error_body
        self.router = APIRouter()
        self.schemas: list[Any] = [error]  # of bodies and events, which FastAPI does not find
        self.paths: list[str] = []
        self.generating: list[str] = []  # the paths of the routes that generate text
        self._error = error

    def post(
        self,
        path: str,
        body: type[BaseModel] | None,
        whole: Any,
        event: Any = None,
        *,
        may_be_empty: bool = False,
    ) -> Callable[[RouteT], RouteT]:
        """Return a decorator that declares a route which reads `body` and answers `whole`.

        Args:
            body: the type of the body; None for a route that reads none.
            may_be_empty: whether an empty body means one without fields.
            event: the type of a stream's events; given for routes that generate text only.
        """
        self.paths.append(path)
        if body is not None:
            self.schemas.append(body)
        if event is not None:
            self.schemas.append(event)
            self.generating.append(path)
        described = describe(body, whole, event, self._error, may_be_empty=may_be_empty)
        return self.router.post(path, **described)

    def get(self, path: str, whole: Any = None, **options: Any) -> Callable[[RouteT], RouteT]:
        """Return a decorator that declares a route which reads no body.

        Args:
            whole: the type of the answer, where the function's return type does not state it.
            options: further arguments of FastAPI's own decorator.
        """
        self.paths.append(path)
        responses = describe_errors(self._error)
        if whole is not None:
            responses[200] = {"model": whole}
            options["response_model"] = None
        return self.router.get(path, responses=responses, **options)
