"""CORS: which web pages may send requests, and which may read the answers."""

from collections.abc import Callable, Sequence

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from server.errors import ApiError
from server.http.failures import error_response, log_failure
from server.http.origins import PagePolicy

EXPOSED = ("x-request-id", "x-understudy-queue-ms", "x-understudy-ignored", "retry-after")
PRIVATE_NETWORK = "Access-Control-Allow-Private-Network"
EVERY_ORIGIN = r"(?s:.*)"


class Cors(CORSMiddleware):
    """Starlette's CORS middleware, with refusals in the format of all errors.

    It runs before the check of keys, because browsers send no key with a preflight request.

    Args:
        origins: the origins of pages that may send requests; None for all of them, where
            `RefusePages` has run before.
    """

    def __init__(self, app: ASGIApp, origins: Sequence[str] | None) -> None:
        super().__init__(
            app,
            allow_origins=origins or (),
            allow_origin_regex=EVERY_ORIGIN if origins is None else None,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            allow_private_network=True,
            expose_headers=EXPOSED,
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            response.headers[PRIVATE_NETWORK] = "true"
            return response
        message = f"{bytes(response.body).decode()} (see cors_origins in understudy.yaml)."
        return error_response(ApiError(message, code="cors_refused"))


class RefusePages:
    """ASGI middleware that refuses requests which a foreign web page may have made.

    Args:
        policy: decides which requests are refused.
        refuse: returns the answer to a refused request.
    """

    def __init__(
        self, app: ASGIApp, policy: PagePolicy, refuse: Callable[[ApiError, Scope], ASGIApp]
    ) -> None:
        self._app = app
        self._policy = policy
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            refusal = self._policy.refusal(scope["method"], scope["path"], headers)
            if refusal is not None:
                log_failure(refusal, quotes_body=False)
                await self._refuse(refusal, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)
