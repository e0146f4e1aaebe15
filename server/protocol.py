"""HTTP as uvicorn speaks it, with a bound on clients that do not get to the point."""

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import ApiError
from server.request_id import HEADER, new_request_id


def patient_protocol(head_timeout: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol; a request's head must be complete after `head_timeout` s.

    uvicorn's own bound counts from the end of an answer only, and each byte ends it.
    """

    class Patient(HttpToolsProtocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._await_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            super().connection_lost(exc)

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._await_head()

        def on_headers_complete(self) -> None:
            self._forget_head()
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            body = bytes(ApiError(msg, code="invalid_http").response().body)
            head = (
                "HTTP/1.1 400 Bad Request",
                "content-type: application/json",
                f"content-length: {len(body)}",
                f"{HEADER}: {new_request_id()}",
                "connection: close",
                "\r\n",
            )
            self.transport.write("\r\n".join(head).encode() + body)
            self.transport.close()

        def _await_head(self) -> None:
            self._forget_head()
            self._deadline = self.loop.call_later(head_timeout, self.transport.close)

        def _forget_head(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()

    return Patient
