"""One API as the app sees it: its routes, the schemas they name, and the shape of its errors."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic import BaseModel

from server.errors import ApiError, ErrorBody
from server.http.openapi import describe, describe_errors

RouteT = TypeVar("RouteT", bound=Callable[..., Any])

ErrorShape = Callable[[ApiError, str], Mapping[str, Any]]
"""Makes the body of an error, from the failure and the id of the request."""


def openai_error(failure: ApiError, _request_id: str) -> ErrorBody:
    """Return an error in OpenAI's shape."""
    return failure.body()


class Api:
    """The routes of one module of `server/http/routes`; the module calls it `api`.

    The app finds it there. Whatever else depends on paths follows from it: the schemas of
    /openapi.json, the routes that /metrics counts, and the shape of errors.

    Args:
        prefixes: where the routes are; /openapi.json shows those below the first.
        error: the type of an error's body.
        error_body: writes an error; it holds for all paths that begin like one of the routes.
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
        self.schemas: list[Any] = [error]  # of bodies and events, which FastAPI does not see
        self.paths: list[str] = []
        self.generating: list[str] = []  # of the paths those that generate text
        self._error = error

    def post(
        self, path: str, body: type[BaseModel], whole: Any, event: Any = None
    ) -> Callable[[RouteT], RouteT]:
        """Declare a route that reads `body` and answers `whole`.

        With `event` the route generates text, and may answer with a stream of such events.
        """
        self.paths.append(path)
        self.schemas.append(body)
        if event is not None:
            self.schemas.append(event)
            self.generating.append(path)
        return self.router.post(path, **describe(body, whole, event, self._error))

    def get(self, path: str, whole: Any = None, **options: Any) -> Callable[[RouteT], RouteT]:
        """Declare a route without a body; `whole` where the return type does not say it."""
        self.paths.append(path)
        responses = describe_errors(self._error)
        if whole is not None:
            responses[200] = {"model": whole}
            options["response_model"] = None
        return self.router.get(path, responses=responses, **options)
