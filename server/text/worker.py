"""A worker process: forked by the host, it runs one call at a time until its pipe is closed."""

import contextlib
import signal
import socket
import traceback
from dataclasses import replace
from typing import Any

from engine.log_lines import LogLine
from server.errors import ApiError
from server.text import frames, stages
from server.text.limits import (
    MB,
    Lane,
    bound_memory,
    bound_time,
    failed,
    private_bytes,
    too_large,
)
from server.text.messages import Answer, Call
from server.text.tokenizer import Tokenizer

MOST_GROWTH = 64 * MB  # a worker that has grown by more than this ends, to free the memory
LONGEST_REASON = 300  # characters of a library's error text that a client is shown


def serve(
    connection: socket.socket, lane: Lane, tokenizer: Tokenizer | None, logged: list[LogLine]
) -> None:
    """Run the calls that arrive on `connection` under the limits of `lane`.

    Return when the other end is closed, or when this process has grown by more than `MOST_GROWTH`.

    Args:
        logged: gets the lines that calls log, which are sent with their answers.
    """
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # `bound_time` relies on the default actions
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    bound_memory(lane.memory)
    at_first = private_bytes()
    is_last = False
    with contextlib.suppress(OSError):  # the front end has ended, or no longer needs the answer
        while not is_last and (received := frames.receive(connection)) is not None:
            message, _ = received
            bound_time(lane.seconds)
            answer = run(message.message, message.raw, tokenizer, lane)
            is_last = private_bytes() - at_first > MOST_GROWTH
            reply = _framed(replace(answer, log=tuple(logged)), is_last, lane)
            logged.clear()
            bound_time(0)
            frames.send(connection, reply)


def run(call: Call, raw: bytes, tokenizer: Tokenizer | None, lane: Lane) -> Answer:
    """Run a call and return its result; ordinary exceptions and Rust panics become an `Answer`."""
    stages.reset()
    try:
        if not call.on_model:
            return Answer(call.function(raw, *call.args))
        if tokenizer is None:
            message = "The model's tokenizer could not be loaded again; see the server's log."
            return Answer(error=ApiError.unavailable(message, "tokenizer_not_loaded"))
        return Answer(call.function(tokenizer, raw, *call.args))
    except ApiError as error:
        return Answer(error=error)
    except MemoryError:
        return Answer(error=too_large(stages.current(), lane))
    except Exception:
        return Answer(bug=traceback.format_exc())
    except BaseException as error:
        # A panic of a Rust library: pyo3 derives it from BaseException and exports no class for it.
        if type(error).__name__ != "PanicException":
            raise
        return Answer(error=failed(stages.current(), str(error)[:LONGEST_REASON]))


def _framed(answer: Answer, is_last: bool, lane: Lane) -> frames.Frame:
    raw: Any = answer.value if isinstance(answer.value, bytes) else b""
    try:
        return frames.frame(
            replace(answer, value=None if raw else answer.value, is_last=is_last), raw
        )
    except MemoryError:
        return frames.frame(Answer(error=too_large(stages.current(), lane), is_last=True))
