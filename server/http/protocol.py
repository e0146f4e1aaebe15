"""HTTP as uvicorn speaks it, with bounds on what a client may send and how long it may take."""

import asyncio
import functools
import http
import socket
import struct
from collections.abc import Callable

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.errors import ApiError
from server.http.failures import error_response, log_failure
from server.http.framing import MOST_FIELDS, PIECE, Framing, Part, too_many_fields
from server.http.request_id import HEADER, new_request_id

MOST_QUEUED = 32  # requests of one connection that wait for the answers of earlier ones
FAREWELL_S = 2.0  # seconds for which what a refused client still sends is thrown away


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


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with bounds on what a client may do before its key is looked at.

    *Time.* The head of a request must be complete within `client_timeout` seconds: uvicorn's own
    bound counts from the end of an answer only, and each byte ends it. And an answer that is held
    up, because the buffers of socket and transport are full, must be able to go on by then: the
    transport's 64 KiB have to be taken down to 16. Else the connection is cut, which the answer
    notices as it does of any client that leaves.

    *Bytes.* What brings no body is bounded by `Framing`. Trailers are read over.

    *Requests.* A client that does not wait for answers may be `MOST_QUEUED` requests ahead. Further
    ones are not read, and the connection ends with the last answer (RFC 9112, 9.3.2: the client
    sends them again).

    Upgrades are declined: the request is answered as if it had not asked for one.
    """

    client_timeout = 60.0

    # uvicorn's own signature narrows asyncio's in the same way
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._head = _Deadline(self.loop, self.client_timeout, transport.close)
        self._room = _Deadline(self.loop, self.client_timeout, functools.partial(_reset, transport))
        self._farewell = _Deadline(self.loop, FAREWELL_S, transport.close)
        self._framing = Framing()
        self._content: list[bytes] = []
        self._is_refused = False
        self.url = b""
        self._head.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head.lift()
        self._room.lift()
        self._farewell.lift()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        for start in range(0, len(data), PIECE):
            if self._is_refused or self.transport.is_closing():
                return
            self._take(data[start : start + PIECE])
        idle = self.cycle is None or self.cycle.response_complete
        if idle and not self._is_refused and not self._head.is_set:
            self._head.set()  # empty lines between requests begin none

    def _take(self, piece: bytes) -> None:
        self._framing.take(len(piece))
        try:
            self._parse(piece)
        except httptools.HttpParserCallbackError as error:
            raised = error.__context__  # in one of the methods below
            self._refuse(raised if isinstance(raised, ApiError) else _not_http())
        except httptools.HttpParserError:
            self._refuse(_not_http())
        else:
            if self._framing.is_exceeded:
                self._refuse(self._framing.error(len(self.url)))

    def _parse(self, piece: bytes) -> None:
        while piece:
            try:
                self.parser.feed_data(piece)
                self._deliver()
                return
            except httptools.HttpParserUpgrade as upgrade:
                piece = self._without_upgrade() + piece[upgrade.args[0] :]

    def _without_upgrade(self) -> bytes:
        """Return a head that asked for an upgrade, without that wish, for a new parser.

        The parser reads no body of such a request. Java's HTTP client sends one: it asks for
        HTTP/2 with its first request, whatever that is.
        """
        line = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        return b"%s %s HTTP/%s\r\n" % line + b"".join(fields) + b"\r\n"

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MOST_QUEUED:
            raise ApiError("Too many requests wait for the answers of earlier ones.")
        super().on_message_begin()
        self._framing.begin(Part.HEAD)
        self._head.set()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._framing.part is not Part.HEAD:
            return  # of trailers
        if len(self.headers) >= MOST_FIELDS:
            raise too_many_fields()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head.lift()
        if self.parser.get_method() == b"CONNECT":
            raise ApiError("Method not allowed: CONNECT", code="method_not_allowed", status=405)
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            self._framing.begin(Part.BODY)

    def on_body(self, body: bytes) -> None:
        self._content.append(body)  # no more: chunks may have one byte each

    def _deliver(self) -> None:
        """Hand on what a piece brought of a body."""
        if self._content:
            body = b"".join(self._content)
            self._content.clear()
            self._framing.content(len(body))
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._deliver()
            self._framing.begin(Part.BETWEEN)
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._room.set()

    def resume_writing(self) -> None:
        self._room.lift()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_refused and self.cycle.response_complete:
            self._leave()

    def _refuse(self, error: ApiError) -> None:
        """Read no more. Answers under way come first, then the connection ends.

        The error is the answer where no other one is under way.
        """
        self._is_refused = True
        self._head.lift()
        request_id = new_request_id()
        log_failure(request_id, error)
        newest = self.cycle  # the last request that was begun, and its answer
        if self._framing.part is not Part.BODY:
            is_next = newest is None or newest.response_complete
        else:
            is_next = not (self.pipeline or newest.response_started)
            if is_next:  # no more of it comes, and its answer is given here
                newest.disconnected = True
                newest.message_event.set()
        if is_next:
            self.transport.write(_answer(error, request_id))
        if is_next or newest.response_complete:
            self._leave()

    def _leave(self) -> None:
        """End the connection, but not before the client can have read the last answer.

        A connection that is closed with unread bytes is reset, and its answers are lost.
        """
        if not self.transport.is_closing():
            self.transport.write_eof()
            self._farewell.set()


def bounded_protocol(timeout: float) -> type[asyncio.Protocol]:
    """Return the protocol for clients that have `timeout` seconds."""

    class Protocol(BoundedProtocol):
        client_timeout = timeout

    return Protocol


def _not_http() -> ApiError:
    return ApiError("Invalid HTTP request received.", code="invalid_http")


def _answer(error: ApiError, request_id: str) -> bytes:
    """Return the whole answer to a request that cannot be read."""
    body = bytes(error_response(error).body)
    head = (
        f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"{HEADER}: {request_id}",
        "connection: close",
        "\r\n",
    )
    return "\r\n".join(head).encode() + body


def _reset(transport: asyncio.Transport) -> None:
    """Cut the connection, and forget what the socket still holds."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
