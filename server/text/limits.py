"""Limits of time and memory for text work, and the errors for requests that exceed them."""

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from server.errors import ApiError
from server.text.stages import Stage

MB = 2**20
PAGE = resource.getpagesize()
LARGE_BODY = 64 * 1024  # bytes from which a body is never parsed in the front end

# The time limit counts CPU time, so that a busy machine does not fail requests. A worker that
# waits instead of computing (for a slow disk, say) is ended after this multiple of it in real time.
WALL_OVER_CPU = 6


@dataclass(frozen=True)
class Lane:
    """The limits of requests in one range of body sizes; they never wait for larger requests.

    Args:
        most_bytes: the size of the largest body in this lane.
        workers: how many calls run at once; further ones wait in order.
        slow_workers: how many calls that have run for over a second may run in addition.
        kept: how many idle workers are kept for later calls.
        seconds: the CPU time that one call may take.
        memory: the bytes that a worker may allocate in addition to its memory at the fork.
    """

    most_bytes: float
    workers: int
    slow_workers: int
    kept: int
    seconds: float
    memory: int


# Tokenizing takes 60 to 416 bytes of memory per byte of text, and 0.3 to 2 s per MB (tokenizers
# 0.23, one core), so a text that fits a context stays within these limits. A chat of 20 messages
# takes 3 ms.
LANES = (
    Lane(most_bytes=LARGE_BODY, workers=4, slow_workers=8, kept=1, seconds=10, memory=512 * MB),
    Lane(most_bytes=2 * MB, workers=2, slow_workers=2, kept=0, seconds=20, memory=512 * MB),
    Lane(most_bytes=float("inf"), workers=1, slow_workers=0, kept=0, seconds=40, memory=1024 * MB),
)

# The limits for loading a tokenizer, which happens once per model.
LOAD = Lane(most_bytes=0, workers=1, slow_workers=0, kept=0, seconds=60, memory=2048 * MB)

# The limits for compiling a grammar. Ordinary ones take up to 0.02 s (50 tools), the largest that
# the parser follows 0.1 s; hostile ones take a time that is quadratic in their length. An accepted
# grammar is compiled again in the engine, in a thread beside the passes.
GRAMMAR = Lane(most_bytes=0, workers=1, slow_workers=0, kept=0, seconds=0.5, memory=256 * MB)

_WHAT = {
    Stage.READING: ("Reading this request", "request_too_complex", None),
    Stage.TEMPLATE: ("The model's chat template", "chat_template_error", "messages"),
    Stage.TOKENIZER: ("The tokenizer, on this text,", "tokenizer_error", None),
    Stage.GRAMMAR: ("Compiling what the answer must match", "invalid_grammar", None),
}
_ADVICE = {
    Stage.READING: "Send less at once.",
    Stage.TEMPLATE: (
        "Shorten the messages; if short ones fail too, the template is at fault: set another with "
        "`chat_template` in the model's YAML file."
    ),
    Stage.TOKENIZER: "Shorten the text, or send it in parts.",
    Stage.GRAMMAR: "Use a simpler schema or grammar.",
}


def bound_memory(nbytes: int) -> None:
    """Limit this process to `nbytes` of address space in addition to what it has now.

    Beyond that, Python code gets a MemoryError, and native code may end the process. The limit is
    set only on Linux, where /proc has the present size.
    """
    if not _has_proc():
        return
    size = int(Path("/proc/self/statm").read_text().split()[0]) * PAGE
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    wanted = size + nbytes
    limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(resource.RLIMIT_AS, (limit, most))


@contextmanager
def bounded(lane: Lane) -> Iterator[None]:
    """Bound the memory and the processor time of the `with` block by the limits of `lane`."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound_memory(lane.memory)
    bound_time(lane.seconds)
    try:
        yield
    finally:
        bound_time(0)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def private_bytes() -> int:
    """Return the bytes of memory that this process shares with no other; 0 where unknown."""
    if not _has_proc():
        return 0
    _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * PAGE


def bound_time(seconds: float) -> None:
    """Let the kernel end this process by a signal after `seconds` of CPU time; 0 removes the limit.

    A signal with its default action works even while native code holds the interpreter's lock.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * WALL_OVER_CPU)


def _has_proc() -> bool:
    return Path("/proc/self/statm").exists()


def too_slow(stage: Stage, lane: Lane) -> ApiError:
    """Return the error for a call that was ended because it exceeded its time limit."""
    return _exceeded(stage, f"took more than {lane.seconds:g} s and was stopped")


def too_large(stage: Stage, lane: Lane) -> ApiError:
    """Return the error for a call that was ended because it exceeded its memory limit."""
    return _exceeded(stage, f"needed more than {lane.memory // MB} MiB of memory and was stopped")


def failed(stage: Stage, reason: str) -> ApiError:
    """Return the error for a call during which a library failed."""
    return _exceeded(stage, f"failed: {reason}")


def _exceeded(stage: Stage, what: str) -> ApiError:
    subject, code, param = _WHAT[stage]
    return ApiError(f"{subject} {what}. {_ADVICE[stage]}", code=code, param=param)
