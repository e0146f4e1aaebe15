"""Bounds on what a connection may send that brings no body: heads, chunk sizes, trailers. Pure."""

from enum import Enum

from server.errors import ApiError

MOST_FRAMING = 64 * 1024  # bytes; other servers take heads of 8 to 64 KiB
MOST_FIELDS = 256  # of a head; clients behind several proxies send some dozens
EARNED = 9  # bytes of a chunked body for each byte of content: chunks of one byte take six
PIECE = 16 * 1024  # bytes that are parsed before the bound is checked again


class Part(Enum):
    """What of HTTP comes next on a connection."""

    BETWEEN = "between requests"
    HEAD = "head"
    BODY = "body"


class Framing:
    """Counts the bytes of one connection that bring no body.

    A head, what lies between two requests, and the sizes, extensions and trailers of a chunked body
    may take `MOST_FRAMING` bytes each; content earns some of a body's again. The parser does not
    tell where in a piece a part ends, so the piece in which a part begins counts for it as a whole.
    """

    def __init__(self) -> None:
        self.part = Part.BETWEEN
        self._left = MOST_FRAMING
        self._piece = 0

    @property
    def is_exceeded(self) -> bool:
        return self._left < 0

    def take(self, nbytes: int) -> None:
        """Count a piece that is about to be parsed."""
        self._piece = nbytes
        self._left -= nbytes

    def begin(self, part: Part) -> None:
        """Note that a part begins in this piece."""
        self.part = part
        self._left = MOST_FRAMING - self._piece

    def content(self, nbytes: int) -> None:
        """Note that bytes of a body came."""
        self._left = min(MOST_FRAMING, self._left + nbytes * EARNED)

    def error(self, url_bytes: int) -> ApiError:
        """Return why no more is taken, once the bound is exceeded."""
        if self.part is Part.HEAD and url_bytes > MOST_FRAMING // 2:
            return ApiError(
                f"The URL of the request has more than {url_bytes} bytes. A request's line and "
                f"headers may have {MOST_FRAMING} together.",
                code="url_too_long",
                status=414,
            )
        if self.part is Part.HEAD:
            return ApiError(
                f"The head of the request exceeds {MOST_FRAMING} bytes. Send fewer or shorter "
                "headers.",
                code="request_head_too_large",
                status=431,
            )
        if self.part is Part.BODY:
            return ApiError(
                f"The request body has more than {MOST_FRAMING} bytes of chunk sizes, chunk "
                "extensions or trailers where they bring no content. Send larger chunks.",
                code="chunk_overhead_too_large",
            )
        return ApiError(
            f"More than {MOST_FRAMING} bytes of empty lines came before a request.",
            code="invalid_http",
        )


def too_many_fields() -> ApiError:
    """Return why a head with more than `MOST_FIELDS` fields is not taken."""
    return ApiError(
        f"The head of the request has more than {MOST_FIELDS} header fields.",
        code="request_head_too_large",
        status=431,
    )
