"""The conversion of errors to the form of the Messages API."""

from server.errors import ApiError
from server.schemas.message_answers import MessageErrorBody

KINDS = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    503: "overloaded_error",
}


def message_error(failure: ApiError, request_id: str) -> MessageErrorBody:
    """Return the body of an error in Anthropic's form, whose message names the parameter."""
    kind = "api_error" if failure.status >= 500 else "invalid_request_error"
    message = failure.message
    if failure.param is not None and failure.param not in message:
        message = f"{failure.param}: {message}"
    return {
        "type": "error",
        "error": {"type": KINDS.get(failure.status, kind), "message": message},
        "request_id": request_id,
    }
