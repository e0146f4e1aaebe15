"""The messages between the front end, the host of its text process, and the workers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.log_lines import LogLine
from engine.text.detokenize import TokenBytes
from server.errors import ApiError
from server.text.limits import Lane
from server.text.stages import Stage


@dataclass(frozen=True)
class TextFacts:
    """The facts about a model's tokenizer that the front end itself needs."""

    bytes: TokenBytes  # the bytes of each token
    template: str  # the chat template; several are joined; "" if there is none


@dataclass(frozen=True)
class Load:
    """Front end to host: load the tokenizer of a folder for the workers that are forked later."""

    folder: str
    chat_template: str | None  # used instead of the folder's own, if given
    trial: Lane  # the limits within which the chat template must be compiled


@dataclass(frozen=True)
class Fork:
    """Front end to host: fork a worker that uses the socket sent with this message."""

    number: int
    lane: Lane


@dataclass(frozen=True)
class GiveWay:
    """Front end to host: give this worker the lowest priority, because its call takes long."""

    number: int


@dataclass(frozen=True)
class Kill:
    """Front end to host: kill this worker, because its answer is no longer needed."""

    number: int


@dataclass(frozen=True)
class Retire:
    """Front end to host: end the host, but let the workers finish their calls."""


@dataclass(frozen=True)
class Ready:
    """Host to front end: the libraries are imported and messages are handled."""


@dataclass(frozen=True)
class Loaded:
    """Host to front end: the tokenizer was loaded, with these facts."""

    facts: TextFacts


@dataclass(frozen=True)
class NotLoaded:
    """Host to front end: the tokenizer cannot be used; the reason names the file."""

    reason: str


@dataclass(frozen=True)
class Ended:
    """Host to front end: a worker process has ended."""

    number: int
    exit_code: int  # minus the number of the signal that ended it, if one did
    stage: Stage  # the step that it was in


@dataclass(frozen=True)
class Call:
    """Front end to worker: run a function on the request body that is sent as raw bytes."""

    function: Callable[..., Any]
    args: tuple[Any, ...]  # the arguments after the body
    on_model: bool  # whether the tokenizer is passed as the first argument


@dataclass(frozen=True)
class Answer:
    """Worker to front end: the function's result or error; bytes are sent as the raw part."""

    value: Any = None
    error: ApiError | None = None
    bug: str = ""  # the traceback of an unexpected exception
    is_last: bool = False  # whether the worker ends after this answer, to free its memory
    log: tuple[LogLine, ...] = ()  # what the call has logged
