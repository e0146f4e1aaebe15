"""Limits on the bytes of HTTP that are not content: heads, chunk sizes, trailers. No I/O."""

from enum import Enum

from server.errors import ApiError

MAX_FRAMING = 64 * 1024  # bytes; other servers accept heads of 8 to 64 KiB
MAX_FIELDS = 256  # of a head; clients behind several proxies send some dozens
BODY_PER_BYTE = 9  # bytes of a chunked body per byte of content; chunks of one byte need six
PIECE = 16 * 1024  # bytes that are parsed before the limit is checked again


class Part(Enum):
    """The part of an HTTP message that a connection sends next."""

    BETWEEN = "between requests"
    HEAD = "head"
    BODY = "body"


class Framing:
    """A counter of the bytes of one connection that are not content.

    A head may have `MAX_FRAMING` bytes, and so may the bytes between two requests, and the sizes,
    extensions and trailers of a chunked body together. Each byte of content allows some more. The
    parser does not report where in a piece a part ends, so the whole piece in which a part begins
    counts for that part.
    """

    def __init__(self) -> None:
        self.part = Part.BETWEEN
        self._left = MAX_FRAMING
        self._piece = 0

    @property
    def is_exceeded(self) -> bool:
        """Whether the current part has more bytes than it may have."""
        return self._left < 0

    def count_piece(self, nbytes: int) -> None:
        """Count a piece that is about to be parsed."""
        self._piece = nbytes
        self._left -= nbytes

    def begin_part(self, part: Part) -> None:
        """Record that a part begins in this piece."""
        self.part = part
        self._left = MAX_FRAMING - self._piece

    def count_content(self, nbytes: int) -> None:
        """Record bytes of content, each of which allows some bytes of a chunked body."""
        self._left = min(MAX_FRAMING, self._left + nbytes * BODY_PER_BYTE)

    def error(self, url_bytes: int) -> ApiError:
        """Return the error for a connection that has exceeded the limit.

        Args:
            url_bytes: the length of the URL, as far as it has arrived.
        """
        if self.part is Part.HEAD and url_bytes > MAX_FRAMING // 2:
            return ApiError(
                f"The URL of the request has more than {url_bytes} bytes. The request line and "
                f"the headers may have {MAX_FRAMING} bytes together.",
                code="url_too_long",
                status=414,
            )
        if self.part is Part.HEAD:
            return ApiError(
                f"The head of the request exceeds {MAX_FRAMING} bytes. Send fewer or shorter "
                "headers.",
                code="request_head_too_large",
                status=431,
            )
        if self.part is Part.BODY:
            return ApiError(
                f"The request body has more than {MAX_FRAMING} bytes of chunk sizes, chunk "
                "extensions or trailers for too little content. Send larger chunks.",
                code="chunk_overhead_too_large",
            )
        return ApiError(
            f"More than {MAX_FRAMING} bytes of empty lines came before a request.",
            code="invalid_http",
        )


def too_many_fields() -> ApiError:
    """Return the error for a head with more than `MAX_FIELDS` fields."""
    return ApiError(
        f"The head of the request has more than {MAX_FIELDS} header fields.",
        code="request_head_too_large",
        status=431,
    )
