"""uvicorn's HTTP protocol, with limits on what a client may send and on the time it may take."""

import asyncio
import functools
import http
import socket
import struct
from collections.abc import Callable

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from server.errors import ApiError
from server.http.failures import error_response, log_failure
from server.http.framing import MAX_FIELDS, PIECE, Framing, Part, too_many_fields
from server.http.request_id import HEADER, new_request_id
from server.logs.access import log_access
from server.metrics.measurement import Measurement

MAX_PIPELINED = 32  # requests of one connection that wait for the answers of earlier ones
# The key of a request's state that is set where the rest of its body is not waited for.
ABANDONED = "is_body_abandoned"
LINGER_S = 2.0  # for which the further bytes of a refused client are read and thrown away


class _Deadline:
    """A timer that calls `on_timeout` after `seconds` unless it is cancelled before."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, seconds: float, on_timeout: Callable[[], None]
    ) -> None:
        self._loop, self._seconds, self._on_timeout = loop, seconds, on_timeout
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_running(self) -> bool:
        return self._timer is not None

    def start(self) -> None:
        self.cancel()
        self._timer = self._loop.call_later(self._seconds, self._on_timeout)

    def cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's protocol with limits on what a client may do before its key is checked.

    *Time.* The head of a request must be complete within `client_timeout` seconds: uvicorn's own
    limit only counts from the end of an answer, and the first byte ends it. An answer that waits
    because the buffers of socket and transport are full must continue within the same time: the
    client must read until the transport's 64 KiB are down to 16. Otherwise the connection is cut,
    which the answer notices like any client that leaves.

    *Bytes.* `Framing` limits the bytes that are not content. Trailers are ignored.

    *Requests.* A client that does not wait for answers may be `MAX_PIPELINED` requests ahead.
    Further ones are not read, and the connection ends with the last answer (RFC 9112, 9.3.2: the
    client sends them again).

    Upgrades are declined: the request is answered as if it had not asked for one.
    """

    client_timeout = 60.0

    # uvicorn's own signature narrows asyncio's in the same way
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        reset = functools.partial(_reset, transport)
        self._head_deadline = _Deadline(self.loop, self.client_timeout, transport.close)
        self._write_deadline = _Deadline(self.loop, self.client_timeout, reset)
        self._linger_deadline = _Deadline(self.loop, LINGER_S, transport.close)
        self._framing = Framing()
        self._content: list[bytes] = []
        self._is_refused = False
        self._cycles: list[RequestResponseCycle] = []  # requests and their answers, oldest first
        self.url = b""
        self._head_deadline.start()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_deadline.cancel()
        self._write_deadline.cancel()
        self._linger_deadline.cancel()
        for cycle in self._cycles:  # uvicorn itself ends the newest one only
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        for start in range(0, len(data), PIECE):
            if self._is_refused or self.transport.is_closing():
                return
            self._receive_piece(data[start : start + PIECE])
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and not self._is_refused and not self._head_deadline.is_running:
            self._head_deadline.start()  # empty lines between requests begin no request

    def _receive_piece(self, piece: bytes) -> None:
        self._framing.count_piece(len(piece))
        try:
            self._parse(piece)
        except httptools.HttpParserCallbackError as error:
            raised = error.__context__  # in one of the methods below
            self._refuse(raised if isinstance(raised, ApiError) else _invalid_http())
        except httptools.HttpParserError:
            self._refuse(_invalid_http())
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
                piece = self._remove_upgrade() + piece[upgrade.args[0] :]

    def _remove_upgrade(self) -> bytes:
        """Return the head of a request for an upgrade without its Upgrade field, for a new parser.

        The old parser reads no body of such a request, but Java's HTTP client may send one: it
        asks for HTTP/2 with its first request, whatever that is.
        """
        line = (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
        fields = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        return b"%s %s HTTP/%s\r\n" % line + b"".join(fields) + b"\r\n"

    def on_message_begin(self) -> None:
        if len(self.pipeline) >= MAX_PIPELINED:
            raise ApiError("Too many requests wait for the answers of earlier ones.")
        super().on_message_begin()
        self._framing.begin_part(Part.HEAD)
        self._head_deadline.start()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._framing.part is not Part.HEAD:
            return  # a field of the trailers
        if len(self.headers) >= MAX_FIELDS:
            raise too_many_fields()
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_deadline.cancel()
        if self.parser.get_method() == b"CONNECT":
            raise ApiError("Method not allowed: CONNECT", code="method_not_allowed", status=405)
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            self._cycles = [cycle for cycle in self._cycles if not cycle.response_complete]
            self._cycles.append(self.cycle)
            self._framing.begin_part(Part.BODY)

    def on_body(self, body: bytes) -> None:
        self._content.append(body)  # delivered together: chunks may have one byte each

    def _deliver(self) -> None:
        """Pass the content of the current piece on to the request."""
        if self._content:
            body = b"".join(self._content)
            self._content.clear()
            self._framing.count_content(len(body))
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self.parser.should_upgrade():
            self._deliver()
            self._framing.begin_part(Part.BETWEEN)
            super().on_message_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._write_deadline.start()

    def resume_writing(self) -> None:
        self._write_deadline.cancel()
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.scope.get("state", {}).get(ABANDONED):
            self._is_refused = True
        if self._is_refused and self.cycle.response_complete:
            self._close_lingering()

    def _refuse(self, error: ApiError) -> None:
        """Stop reading, let answers in progress finish, and end the connection.

        The error is sent where no other answer is in progress.
        """
        self._is_refused = True
        self._head_deadline.cancel()
        request_id = new_request_id()
        log_failure(error, request_id=request_id, quotes_body=False)
        client = self.client[0] if self.client else "-"
        unread = Measurement("", client=client, request_id=request_id)
        unread.fail(error.code, error.status)
        log_access(unread)
        newest = self.cycle  # the request that was begun last, and its answer
        if self._framing.part is not Part.BODY:
            is_next = newest is None or newest.response_complete
        else:
            is_next = not (self.pipeline or newest.response_started)
            if is_next:  # its body will not be complete, and it is answered here
                newest.disconnected = True
                newest.message_event.set()
        if is_next:
            self.transport.write(_answer(error, request_id))
        if is_next or newest.response_complete:
            self._close_lingering()

    def _close_lingering(self) -> None:
        """End the connection, after the client has had time to read the last answer.

        A connection that is closed with unread bytes is reset, and its answers are lost.
        """
        if not self.transport.is_closing():
            if self.transport.can_write_eof():  # TLS has no half-closed connections
                self.transport.write_eof()
            self._linger_deadline.start()


def bounded_protocol(timeout: float) -> type[asyncio.Protocol]:
    """Return a protocol class whose `client_timeout` is `timeout` seconds."""

    class Protocol(BoundedProtocol):
        client_timeout = timeout

    return Protocol


def _invalid_http() -> ApiError:
    return ApiError("Invalid HTTP request received.", code="invalid_http")


def _answer(error: ApiError, request_id: str) -> bytes:
    """Return the bytes of the whole answer to a request that cannot be read."""
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
    """Cut the connection and discard what the socket has not sent."""
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
