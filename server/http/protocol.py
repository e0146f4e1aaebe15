"""HTTP as uvicorn speaks it, with bounds on clients that keep it waiting."""

import asyncio
import functools
import socket
import struct
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import ApiError
from server.http.failures import error_response
from server.http.request_id import HEADER, new_request_id


class _Deadline:
    """Calls `late` when something is not there in time."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, late: Callable[[], None]):
        self._loop, self._seconds, self._late = loop, seconds, late
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        return self._timer is not None

    def set(self) -> None:
        self.lift()
        self._timer = self._loop.call_later(self._seconds, self._late)

    def lift(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def patient_protocol(timeout: float) -> type[asyncio.Protocol]:
    """uvicorn's protocol for clients that send and take what they must within `timeout` s.

    The head of a request must be complete by then: uvicorn's own bound counts from the end of an
    answer only, and each byte ends it. And an answer that is held up, because the buffers of
    socket and transport are full, must be able to go on by then: the transport's 64 KiB have to
    be taken down to 16. Else the connection is cut, which the answer notices as it does of any
    client that leaves.
    """

    class Patient(HttpToolsProtocol):
        # uvicorn's own signature narrows asyncio's in the same way
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._head = _Deadline(self.loop, timeout, transport.close)
            self._room = _Deadline(self.loop, timeout, functools.partial(_reset, transport))
            self._head.set()

        def connection_lost(self, exc: Exception | None) -> None:
            self._head.lift()
            self._room.lift()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            idle = self.cycle is None or self.cycle.response_complete
            if idle and not self._head.is_set:  # empty lines between requests begin none
                self._head.set()

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._head.set()

        def on_headers_complete(self) -> None:
            self._head.lift()
            super().on_headers_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._room.set()

        def resume_writing(self) -> None:
            self._room.lift()
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            body = bytes(error_response(ApiError(msg, code="invalid_http")).body)
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

    return Patient


def _reset(transport: asyncio.Transport) -> None:
    """Cut the connection, and forget what the socket still holds."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
