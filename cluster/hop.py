"""What a request takes along to a peer besides its message: the headers that continue its trace."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar


def no_headers() -> Mapping[str, str]:
    """Return no headers."""
    return {}


# Returns the headers of the request that the running task answers. It is called when the request
# goes to a peer, so that others cost nothing.
trace_headers: ContextVar[Callable[[], Mapping[str, str]]] = ContextVar(
    "trace_headers", default=no_headers
)
