"""Which pages may ask from a browser: none, unless their origins are configured."""

from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from server.errors import ApiError
from server.http.failures import error_response

EXPOSED = ("x-request-id", "x-understudy-queue-ms", "retry-after")


class Cors(CORSMiddleware):
    """Starlette's, with its refusals in the one shape of errors.

    It stands outside of the check of keys: browsers send none with their preflight requests.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app,
            allow_origins=origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        message = f"{bytes(response.body).decode()} (see cors_origins in understudy.yaml)."
        return error_response(ApiError(message, code="cors_refused"))
