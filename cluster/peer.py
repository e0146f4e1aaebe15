"""The client of one peer: a server elsewhere that runs the same model, over plain HTTP."""

import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import httpx
from pydantic import ValidationError

from cluster.address import Address
from cluster.hop import trace_headers
from cluster.wire import (
    LONGEST_LINE,
    SIGN_SECONDS,
    Ask,
    Emitted,
    Ended,
    Failure,
    Progress,
    Report,
    asks,
    frames,
    reports,
)

REPORT_PATH, GENERATE_PATH = "/v1/peer", "/v1/peer/generate"
SILENCE_SECONDS = 5 * SIGN_SECONDS  # after which a peer is lost
CONNECT_SECONDS = 2.0
ALL_ADDRESSES_FAILED = "All connection attempts failed"  # as anyio says
LARGEST_REPORT = 16 << 20  # bytes


class PeerLost(Exception):
    """A peer that cannot be reached, refuses, or ends a stream before its end."""


class PeerNonsense(PeerLost):
    """A peer that answers something that no server of this kind answers."""


class PeerClient:
    """The requests to one peer. Redirects are not followed, and proxies are not used.

    Args:
        transport: sends the requests; tests give one without a network.
    """

    def __init__(self, address: Address, transport: httpx.AsyncBaseTransport | None = None) -> None:
        headers = {"Authorization": f"Bearer {address.key}"} if address.key else {}
        own = address.ca_file
        self._http = httpx.AsyncClient(
            base_url=address.url,
            headers={**headers, "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS, pool=None),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=30.0),
            verify=True if own is None else ssl.create_default_context(cafile=own),
            transport=transport,
            trust_env=False,
        )

    async def report(self, number: int, instance: str) -> tuple[Report, float]:
        """Return what the peer says of itself, and the seconds that the question took.

        Raise `PeerLost`.

        Args:
            number, instance: those of the report before; changes since then are asked for.
        """
        asked = time.monotonic()
        params = {"since": str(number), "instance": instance}
        async with self._open("GET", REPORT_PATH, params=params) as response:
            raw = bytearray()
            async for chunk in response.aiter_raw():
                raw += chunk
                if len(raw) > LARGEST_REPORT:
                    raise PeerNonsense("its report is too long")
        try:
            return reports.validate_json(bytes(raw)), time.monotonic() - asked
        except ValidationError as error:
            raise PeerNonsense(f"its report is none: {error.errors()[0]['msg']}") from error

    async def generate(
        self, ask: Ask
    ) -> AsyncGenerator[Progress | Emitted | Ended | Failure, None]:
        """Yield what the peer answers to a request, up to `Ended` or `Failure`.

        Raise `PeerLost` if it ends before.
        """
        own_id = ask.message.http_id or ask.message.request_id
        body, headers = asks.dump_json(ask), {**trace_headers.get()(), "x-request-id": own_id}
        async with self._open("POST", GENERATE_PATH, content=body, headers=headers) as response:
            async for line in _lines(response):
                try:
                    frame = frames.validate_json(line)
                except ValidationError as error:
                    reason = error.errors()[0]["msg"]
                    raise PeerNonsense(f"it sent something else than tokens: {reason}") from error
                yield frame
                if isinstance(frame, Ended | Failure):
                    return
        raise PeerLost("it ended the stream too early")

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    @asynccontextmanager
    async def _open(
        self,
        method: str,
        path: str,
        *,
        params: dict[str, str] | None = None,
        headers: dict[str, str] | None = None,
        content: bytes = b"",
    ) -> AsyncIterator[httpx.Response]:
        """Send a request, and yield the answer, whose body has not been read."""
        try:
            async with self._http.stream(
                method, path, params=params, headers=headers, content=content
            ) as response:
                if response.status_code != 200:
                    raise PeerLost(_explain(response.status_code))
                yield response
        except (httpx.ConnectError, httpx.TimeoutException) as error:
            raise PeerLost(_unreachable(error)) from error
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError) as error:
            raise PeerLost(str(error) or type(error).__name__) from error


def _unreachable(error: httpx.ConnectError | httpx.TimeoutException) -> str:
    """Return why there is no answer, in the same words for all attempts at a dead machine."""
    if isinstance(error, httpx.ConnectTimeout) or str(error) == ALL_ADDRESSES_FAILED:
        return "no server answers there"
    if isinstance(error, httpx.ConnectError):
        return str(error) or type(error).__name__
    return f"it did not answer within {SILENCE_SECONDS:g} seconds"


def _explain(status: int) -> str:
    """Return why an answer with this status is none."""
    reasons = {
        401: "it does not accept the key",
        404: "it is no server of this kind, or an older one",
        409: "it has another model, or other weights, loaded",
        503: "it takes no requests now",
    }
    if 300 <= status < 400:
        return f"it answers with a redirect ({status}), which is not followed"
    return reasons.get(status, f"it answers with the status {status}")


async def _lines(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield the lines of an answer that are not empty."""
    rest = b""
    async for chunk in response.aiter_raw():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            if line:
                yield line
        if len(rest) > LONGEST_LINE:
            raise PeerNonsense("it sent a line that is too long")
