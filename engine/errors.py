"""The errors of the engine, each of which is reported to the client or user that it concerns.

EngineError
├── ModelError     the model cannot be loaded: what is wrong, where (file, tensor, key), what to do
├── RequestError   the request cannot be served as asked: answered with a 4xx
├── PassFailed     weights could not be read or gave no numbers, the device's memory was too
│                  little, or the answer's parser failed: this request fails, the engine goes on
├── QueueFull      too many requests wait: answered with a 503 and Retry-After
└── EngineDied     the engine process ended or stalled while the request was running
    └── StreamCut  and no other one can go on with its answer, whose tokens it has
"""

from collections.abc import Mapping, Sequence
from reprlib import Repr

LONGEST_MESSAGE = 2000  # characters
LONGEST_VALUE = 100  # characters of a value from a file


def escaped(text: str) -> str:
    """Return a text in which every character that a terminal might interpret is escaped.

    Names and values are untrusted: control characters in them could overwrite the screen, and
    marks of writing direction could display another name.
    """
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def printable(text: str, most: int = LONGEST_MESSAGE) -> str:
    """Return a message cut to `most` characters, escaped but for its line ends."""
    if len(text) > most:
        text = f"{text[:most]}..."
    return "\n".join(map(escaped, text.split("\n")))


def shown(value: object) -> str:
    """Return how a value from a file is shown in a message: as Python writes it, cut."""
    return printable(_SHORT.repr(value), LONGEST_VALUE)


class _Short(Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = LONGEST_VALUE


_SHORT = _Short()


def system_reason(error: Exception) -> str:
    """Return why a call of the system failed, without the path that Python adds to its errors.

    Messages name the path themselves, at their beginning. Of other errors it is the whole text.
    """
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


class EngineError(Exception):
    """The base of all errors that are reported to a client or a user.

    The message is made printable.
    """

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


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

    The engine goes on, so that the client may send the request again. `code` is one of `CODES`.
    """

    CODES = frozenset(
        {"weights_unreadable", "logits_not_finite", "answer_unreadable", "out_of_memory"}
    )

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


def not_finite() -> PassFailed:
    """Return the error for a request to which the model's answer is no number."""
    return PassFailed(
        "The model computed values that are NaN or infinite for this text: its weights are "
        "damaged, or config.json does not belong to them. The log of the load names damaged "
        "tensors; download the checkpoint again",
        "logits_not_finite",
    )


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


class StreamCut(EngineDied):
    """An answer was begun, and no engine that could go on with it is left.

    Args:
        fingerprint: that of the engine that must go on with it.
        emitted: by choice, the tokens so far of those that have not finished.
        seed: the seed of the answer.
    """

    def __init__(
        self, message: str, fingerprint: str, emitted: Mapping[int, Sequence[int]], seed: int
    ) -> None:
        super().__init__(message, "stream_cut")
        self.fingerprint = fingerprint
        self.emitted = emitted
        self.seed = seed
