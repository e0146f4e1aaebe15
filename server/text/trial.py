"""The trial of work that may take too long or end its process: a forked process runs it."""

import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from server.text.limits import MB, Lane, bound_memory, bound_time

T = TypeVar("T")

EXIT_CRASHED = 70  # EX_SOFTWARE: the traceback is on stderr
LONGEST_REASON = 500  # characters


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """The result of a trial: the value that it returned, or the reason why it failed.

    `reason` is "" if the trial succeeded.
    """

    value: T | None = None
    reason: str = ""


def tried(work: Callable[[], T], lane: Lane) -> Outcome[T]:
    """Run `work` in a forked process under the limits of `lane`, and return its outcome."""
    theirs, ours = socket.socketpair()
    no_memory = f"it takes more than {lane.memory // MB} MiB of memory"

    def run() -> None:
        ours.close()
        bound_memory(lane.memory)
        bound_time(lane.seconds)
        try:
            outcome = Outcome(work())
        except MemoryError:
            outcome = Outcome(reason=no_memory)
        except Exception as error:  # what `work` raises is its outcome here
            reason = str(error)[:LONGEST_REASON] or type(error).__name__
            outcome = Outcome(reason=reason.encode(errors="replace").decode())
        theirs.sendall(pickle.dumps(outcome))

    pid = forked(run)
    theirs.close()
    with ours:
        said = b"".join(iter(lambda: ours.recv(4096), b""))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        outcome: Outcome[T] = pickle.loads(said)
        return outcome
    if code in (-signal.SIGPROF, -signal.SIGALRM):
        return Outcome(reason=f"it takes more than {lane.seconds:g} s")
    return Outcome(reason=f"{no_memory}, or it is nested too deeply")


def forked(work: Callable[[], None]) -> int:
    """Run `work` in a forked process, which then ends, and return the id of the process."""
    pid = os.fork()
    if pid:
        return pid
    code = EXIT_CRASHED
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        work()
        code = 0
    except BaseException:  # nothing may propagate into the host's own stack
        traceback.print_exc()
    finally:
        os._exit(code)  # not sys.exit: the stack above this belongs to the host
