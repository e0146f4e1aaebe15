"""What the front end, the host of its text process, and the workers tell each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.text.detokenize import TokenBytes
from server.errors import ApiError
from server.text.limits import Lane
from server.text.stages import Stage


@dataclass(frozen=True)
class TextFacts:
    """What the front end itself needs to know of a model's tokenizer."""

    bytes: TokenBytes
    template: str  # of chats; of several, the text of all; "" without one


@dataclass(frozen=True)
class Load:
    """Front end to host: load the tokenizer of a folder; workers forked after this have it."""

    folder: str
    chat_template: str | None  # in place of the folder's
    trial: Lane  # the limits within which the chat template must be compiled


@dataclass(frozen=True)
class Fork:
    """Front end to host: fork a worker for the socket that comes with this message."""

    number: int
    lane: Lane


@dataclass(frozen=True)
class GiveWay:
    """Front end to host: this worker takes long; whatever else runs goes first."""

    number: int


@dataclass(frozen=True)
class Kill:
    """Front end to host: nobody waits for this worker any more."""

    number: int


@dataclass(frozen=True)
class Retire:
    """Front end to host: end, but let the workers finish their calls."""


@dataclass(frozen=True)
class Ready:
    """Host to front end: its libraries are imported."""


@dataclass(frozen=True)
class Loaded:
    """Host to front end: the tokenizer is loaded."""

    facts: TextFacts


@dataclass(frozen=True)
class NotLoaded:
    """Host to front end: the tokenizer cannot be used, and why, with the file's name."""

    reason: str


@dataclass(frozen=True)
class Ended:
    """Host to front end: a worker has ended."""

    number: int
    exit_code: int  # or minus the signal
    stage: Stage  # what it was doing


@dataclass(frozen=True)
class Call:
    """Front end to worker: run a function; the body of the request comes beside it, as it was."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    on_model: bool  # the tokenizer is its first argument


@dataclass(frozen=True)
class Answer:
    """Worker to front end: what the function returned or raised; bytes come beside it."""

    value: Any = None
    error: ApiError | None = None
    bug: str = ""  # the traceback of an exception that should not have been
    is_last: bool = False  # the worker ends after this, to give its memory back
