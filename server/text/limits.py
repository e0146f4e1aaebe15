"""How much time and memory text work may take, and what a client reads that exceeds it."""

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

# The limit is the time of the processor, so that a busy machine refuses nothing; a worker that
# sleeps instead (on a slow disk, say) is ended after this many times as long.
WALL_OVER_CPU = 6


@dataclass(frozen=True)
class Lane:
    """Requests of one range of sizes, which never wait for larger ones.

    Args:
        most_bytes: the largest body.
        workers: how many run at once. Others wait in turn.
        slow_workers: how many may run beside them that have run for a second.
        kept: idle workers that are not ended.
        seconds: of the processor, for one call.
        memory: bytes that a worker may take beside what it had when it was forked.
    """

    most_bytes: float
    workers: int
    slow_workers: int
    kept: int
    seconds: float
    memory: int


# Tokenizing takes up to 180 bytes of memory a byte of text, and 0.3 to 0.5 s a MB (tokenizers 0.23,
# one core): any text that fits a context stays far within these limits. A chat of 20 messages takes
# 3 ms. So 9 MB of text can be tokenized at once, and 32 MB cannot.
LANES = (
    Lane(most_bytes=LARGE_BODY, workers=4, slow_workers=8, kept=1, seconds=10, memory=512 * MB),
    Lane(most_bytes=2 * MB, workers=2, slow_workers=2, kept=0, seconds=20, memory=512 * MB),
    Lane(most_bytes=float("inf"), workers=1, slow_workers=0, kept=0, seconds=40, memory=1024 * MB),
)

# For the load of a tokenizer, once a model.
LOAD = Lane(most_bytes=0, workers=1, slow_workers=0, kept=0, seconds=60, memory=2048 * MB)

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
    """Let this process take `nbytes` more than it has now; more is a MemoryError, or its end.

    Only where the system says what a process has: Linux.
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
    """Bound the memory and the time of the block."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    bound_memory(lane.memory)
    bound_time(lane.seconds)
    try:
        yield
    finally:
        bound_time(0)
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def private_bytes() -> int:
    """Return the memory that only this process has; 0 where the system does not say."""
    if not _has_proc():
        return 0
    _, resident, shared = Path("/proc/self/statm").read_text().split()[:3]
    return (int(resident) - int(shared)) * PAGE


def bound_time(seconds: float) -> None:
    """End this process by a signal after so many seconds of work; 0: never.

    The kernel ends it, so nothing that holds the interpreter can hold this up.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, seconds * WALL_OVER_CPU)


def _has_proc() -> bool:
    return Path("/proc/self/statm").exists()


def too_slow(stage: Stage, lane: Lane) -> ApiError:
    """Return the error of a call that was ended for its time."""
    return _exceeded(stage, f"took more than {lane.seconds:g} s and was stopped")


def too_large(stage: Stage, lane: Lane) -> ApiError:
    """Return the error of a call that was ended for its memory."""
    return _exceeded(stage, f"needed more than {lane.memory // MB} MiB of memory and was stopped")


def failed(stage: Stage, reason: str) -> ApiError:
    """Return the error of a call on which a library failed."""
    return _exceeded(stage, f"failed: {reason}")


def _exceeded(stage: Stage, what: str) -> ApiError:
    subject, code, param = _WHAT[stage]
    return ApiError(f"{subject} {what}. {_ADVICE[stage]}", code=code, param=param)
