"""The body of a request: it is read within limits of size and time, and checked by its schema."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request
from starlette.requests import ClientDisconnect

from server.chat.received import Received, received
from server.errors import ApiError
from server.http.protocol import ABANDONED
from server.http.state import state_of
from server.schemas.fields import Body
from server.schemas.scan import BodyScan

SLOWEST_BODY = 4096  # lowest average rate, bytes a second
SCANNED = 64 * 1024  # bytes scanned, in 5 ms at most, before other requests get a turn

BodyT = TypeVar("BodyT", bound=Body)


def body_of(
    kind: type[BodyT], *, may_be_empty: bool = False
) -> Callable[[Request], Coroutine[Any, Any, Received[BodyT]]]:
    """Return a FastAPI dependency that reads and checks a request's body.

    The content type is ignored.

    Args:
        may_be_empty: whether an empty body means one without fields.
    """

    async def dependency(request: Request) -> Received[BodyT]:
        state = state_of(request)
        limit, timeout = state.settings.max_body_bytes, state.settings.client_timeout
        raw = await read_body(request, limit, timeout)
        return await received(state.models.text, kind, raw or (b"{}" if may_be_empty else raw))

    return dependency


async def read_body(request: Request, limit: int, timeout: float) -> bytes:
    """Return the whole body.

    Raise `ApiError` 413 as soon as the body is known to exceed `limit` bytes; 400 as soon as it
    exceeds a limit of `BodyScan`, and when the client leaves before its end; 408 when nothing
    arrives for `timeout` seconds, or when the body takes longer than `timeout` seconds plus its
    bytes at the rate `SLOWEST_BODY`.
    """
    declared = request.headers.get("content-length", "0")
    too_large = declared.isdigit() and int(declared) > limit
    raw = bytearray()
    scan = BodyScan()
    if not too_large:
        try:
            async with asyncio.timeout(timeout) as deadline:
                last = deadline.when() or 0.0
                async for chunk in request.stream():
                    raw += chunk
                    now = asyncio.get_running_loop().time()
                    deadline.reschedule(min(now + timeout, last + len(raw) / SLOWEST_BODY))
                    if len(raw) > limit:
                        too_large = True
                        break
                    await _scan_in_turns(scan, chunk)
        except TimeoutError:
            message = (
                f"The request body came too slowly: {len(raw)} bytes, and then no more in time."
            )
            # Not `Connection: close`: uvicorn would close at once, and the client's next bytes
            # would reset the connection before it has read the answer.
            request.scope["state"][ABANDONED] = True
            raise ApiError(message, code="request_timeout", status=408) from None
        except ClientDisconnect:
            message = f"The client left after {len(raw)} bytes of the request body."
            raise ApiError(message, code="incomplete_body") from None
    if too_large:
        message = f"The request body exceeds the limit of {limit} bytes."
        raise ApiError(message, code="request_too_large", status=413)
    return bytes(raw)


async def _scan_in_turns(scan: BodyScan, chunk: bytes) -> None:
    """Scan a chunk, and let other requests run after each large piece of it."""
    scan.feed(chunk[:SCANNED])
    for start in range(SCANNED, len(chunk), SCANNED):
        await asyncio.sleep(0)
        scan.feed(chunk[start : start + SCANNED])
