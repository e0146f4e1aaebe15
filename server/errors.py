"""The errors that clients see, in the form of the OpenAI API's error object."""

from collections.abc import Mapping
from typing import NotRequired, Self

from typing_extensions import TypedDict  # typing's own, before 3.12, has no schema in pydantic

from engine.errors import (
    EngineDied,
    EngineError,
    ModelError,
    PassFailed,
    QueueFull,
    RequestError,
    StreamCut,
)

RETRY_AFTER_S = 5
IN_THE_LOG = "Something failed in the server. Its log has the reason."


class ErrorObject(TypedDict):
    """What went wrong, and the request field at fault."""

    message: str
    type: str
    param: str | None
    code: str | None
    # Of a stream that was cut off: what a request needs that goes on with it.
    continue_tokens: NotRequired[dict[str, list[int]]]
    fingerprint: NotRequired[str]
    seed: NotRequired[int]


class ErrorBody(TypedDict):
    """The body of a failed request's answer."""

    error: ErrorObject


class ApiError(Exception):
    """A failed request, with its HTTP status and the fields of the API's error object.

    Args:
        message: a sentence for the client, which says what to do.
        code: the machine-readable reason.
        param: the request field at fault.
        headers: further headers of the answer.
        cut: the stream that was cut off, which the client can go on with.
    """

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        status: int = 400,
        headers: Mapping[str, str] | None = None,
        cut: StreamCut | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.param = param
        self.status = status
        self.headers = dict(headers or {})
        self.cut = cut

    @classmethod
    def missing(cls, param: str, message: str | None = None) -> Self:
        """Return the error of a request that lacks a required field."""
        text = message or f"Missing required parameter: '{param}'."
        return cls(text, code="missing_required_parameter", param=param)

    @classmethod
    def unavailable(cls, message: str, code: str) -> Self:
        """Return a 503 for a request that may succeed when it is sent again."""
        return cls(message, code=code, status=503, headers={"Retry-After": str(RETRY_AFTER_S)})

    @property
    def type(self) -> str:
        """The `type` of the error object, which follows from the status."""
        return "server_error" if self.status >= 500 else "invalid_request_error"

    def body(self) -> ErrorBody:
        """Return the JSON body of the answer."""
        error: ErrorObject = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        if self.cut is not None:
            ids = {str(choice): list(emitted) for choice, emitted in self.cut.emitted.items()}
            error["continue_tokens"] = ids
            error["fingerprint"], error["seed"] = self.cut.fingerprint, self.cut.seed
        return {"error": error}


def as_api_error(error: ApiError | EngineError) -> ApiError:
    """Return the error that a client gets for a failure."""
    match error:
        case ApiError():
            return error
        case RequestError():
            return ApiError(str(error), code=error.code, param=error.param)
        case QueueFull():
            return ApiError.unavailable(str(error), "queue_full")
        case StreamCut():
            retry = {"Retry-After": str(RETRY_AFTER_S)}
            return ApiError(str(error), code=error.code, status=503, headers=retry, cut=error)
        case EngineDied():
            return ApiError.unavailable(str(error), error.code)
        case PassFailed():
            return ApiError(str(error), code=error.code, status=500)
        case ModelError():
            return ApiError(str(error), code="model_load_failed", status=500)
        case _:
            return ApiError(str(error), code="engine_error", status=500)


def reason_of(error: BaseException) -> str:
    """Return the text of an error that clients may see, else where its text is."""
    if isinstance(error, ApiError | EngineError):
        return as_api_error(error).message
    return IN_THE_LOG
