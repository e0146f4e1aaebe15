"""Sizes in the bodies of requests."""

from server.config.files import parse_size
from server.errors import ApiError
from server.schemas.plans import MAX_SIZE, MIN_SIZE


def size_of(field: str, value: int | str | None) -> int | None:
    """Return the bytes of a field. Raises `ApiError` 400 for text that is no size."""
    if not isinstance(value, str):
        return value
    try:
        size = int(str(parse_size(value)))
    except ValueError as error:
        raise ApiError(
            f"Invalid value for '{field}': {error}.", code="invalid_value", param=field
        ) from error
    if not MIN_SIZE <= size <= MAX_SIZE:
        message = f"Invalid value for '{field}': it must be at least 1 MiB, and at most 1 PiB."
        raise ApiError(message, code="invalid_value", param=field)
    return size
