"""The errors of the engine, each of which is reported to the client or user that it concerns.

EngineError
├── ModelError     the model cannot be loaded: what is wrong, where (file, tensor, key), what to do
├── RequestError   the request cannot be served as asked: answered with a 4xx
├── PassFailed     weights could not be read: this request fails, the engine goes on
├── QueueFull      too many requests wait: answered with a 503 and Retry-After
└── EngineDied     the engine process ended or stalled while the request was running
"""


class EngineError(Exception):
    """The base of all errors that are reported to a client or a user."""


class ModelError(EngineError):
    """The model cannot be loaded; the message names the file, tensor or key and the remedy."""


class RequestError(EngineError):
    """The request cannot be served as asked.

    `code` is the machine-readable reason (for example `context_length_exceeded`), `param` the
    request field at fault, both as in the OpenAI API's error object.
    """

    def __init__(self, message: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param

    def __reduce__(self) -> tuple[type, tuple[str, str | None, str | None]]:
        return (RequestError, (str(self), self.code, self.param))


class PassFailed(EngineError):
    """The pass that served the request failed, and the request was not the cause.

    The engine goes on, so that the client may send the request again. `code` is
    `weights_unreadable`.
    """

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class QueueFull(EngineError):
    """The request was not accepted, because the queue has reached its limit."""


class EngineDied(EngineError):
    """The engine process ended, or was ended because it made no progress.

    `code` is the machine-readable reason: `engine_died`, `engine_stalled`, `engine_error`,
    `engine_closed`.
    """

    def __init__(self, message: str, code: str = "engine_died") -> None:
        super().__init__(message)
        self.code = code
