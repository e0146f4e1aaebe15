"""From the bytes of a request to a checked object, or the one error shape."""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeVar

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect

from server.errors import ApiError
from server.http.state import state_of
from server.schemas.checking import steps_in_body
from server.schemas.fields import Body

LARGE_BODY = 64 * 1024  # bytes from which parsing leaves the event loop
SLOWEST_BODY = 4096  # bytes a second, on the whole

# keys and values of the client's appear in answers, but not megabytes of them
LONGEST_STEP = 64
LONGEST_MESSAGE = 500

BodyT = TypeVar("BodyT", bound=Body)


def body_of(kind: type[BodyT]) -> Callable[[Request], Coroutine[Any, Any, BodyT]]:
    """A dependency that reads and checks a request's body, whatever its content type says."""

    async def dependency(request: Request) -> BodyT:
        settings = state_of(request).settings
        raw = await read_body(request, settings.max_body_bytes, settings.client_timeout)
        if len(raw) >= LARGE_BODY:
            return await asyncio.to_thread(parse_body, kind, raw)
        return parse_body(kind, raw)

    return dependency


async def read_body(request: Request, limit: int, timeout: float) -> bytes:
    """The whole body.

    Raises `ApiError` 413 as soon as it is known to exceed `limit` bytes, 400 when the client
    leaves before its end, 408 when nothing comes for `timeout` seconds, or so little that these
    and `SLOWEST_BODY` do not account for the time.
    """
    declared = request.headers.get("content-length", "0")
    too_large = declared.isdigit() and int(declared) > limit
    raw = bytearray()
    if not too_large:
        try:
            async with asyncio.timeout(timeout) as patience:
                last = patience.when() or 0.0
                async for chunk in request.stream():
                    raw += chunk
                    now = asyncio.get_running_loop().time()
                    patience.reschedule(min(now + timeout, last + len(raw) / SLOWEST_BODY))
                    if len(raw) > limit:
                        too_large = True
                        break
        except TimeoutError:
            message = (
                f"The request body came too slowly: {len(raw)} bytes, and then no more in time."
            )
            headers = {"Connection": "close"}
            raise ApiError(message, code="request_timeout", status=408, headers=headers) from None
        except ClientDisconnect:
            message = f"The client left after {len(raw)} bytes of the request body."
            raise ApiError(message, code="incomplete_body") from None
    if too_large:
        message = f"The request body exceeds the limit of {limit} bytes."
        raise ApiError(message, code="request_too_large", status=413)
    return bytes(raw)


def parse_body(kind: type[BodyT], raw: bytes) -> BodyT:
    """Check a JSON body. Raises `ApiError` 400 for the first mistake."""
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        # "json_invalid" comes alone, so whatever has another type did parse
        first = error.errors(include_url=False)[0]
        if first["type"] == "json_invalid":
            message = f"The body is not valid JSON: {first['ctx']['error']}"
            raise ApiError(message, code="invalid_json") from None
        raise _refusal(kind, first) from None


def check_object(kind: type[BodyT], data: Mapping[str, Any]) -> BodyT:
    """Check what another body was turned into. Raises `ApiError` 400 for the first mistake."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise _refusal(kind, error.errors(include_url=False)[0]) from None


def _refusal(kind: type[Body], error: ErrorDetails) -> ApiError:
    context = error.get("ctx") or {}
    path = [str(step)[:LONGEST_STEP] for step in steps_in_body(kind, error["loc"])]
    if "field" in context:
        path.append(context["field"][:LONGEST_STEP])
    elif error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        path.append(str(context["discriminator"]).strip("'"))
    param = ".".join(path) or None
    code = _code(error)
    if not path:
        return ApiError("The body must be a JSON object.", code=code)
    if code == "missing_required_parameter" and "message" not in context:
        return ApiError.missing(".".join(path))
    text = context.get("message") or f"Invalid value for '{param}': {error['msg']}"
    return ApiError(f"{text[:LONGEST_MESSAGE]}.", code=code, param=param)


def _code(error: ErrorDetails) -> str:
    kind = error["type"]
    if kind in ("missing", "union_tag_not_found"):
        return "missing_required_parameter"
    if kind == "too_short":
        return "empty_array"
    if kind.endswith(("_type", "_attributes_type")) or kind == "int_from_float":
        return "invalid_type"
    known = ("missing_required_parameter", "unsupported_parameter", "unsupported_content")
    return kind if kind in known else "invalid_value"
