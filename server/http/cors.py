"""Answers for browsers: which pages may read answers, and which may not even ask."""

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
    """Starlette's, with its refusals in the one shape of errors.

    It stands outside of the check of keys: browsers send none with their preflight requests.

    Args:
        origins: of the pages that may ask; None for each origin that comes so far, because
            `RefusePages` stands outside.
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
    """ASGI middleware: requests that a foreign web page may have made reach no route.

    Args:
        refuse: makes the answer to such a request.
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
                log_failure(scope["state"]["request_id"], refusal)
                await self._refuse(refusal, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)
