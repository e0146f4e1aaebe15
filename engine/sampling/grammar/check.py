"""Check whether a grammar compiles, in a process of its own if it might crash the process.

llguidance recurses along rules and references, so a chain of some thousand of them overflows the
stack. A grammar that compiles here, with half of the stack, compiles in the engine too.
"""

import ctypes
import signal
import subprocess
import sys
from functools import lru_cache
from threading import Thread, stack_size

from engine.sampling.grammar.grammar import fault_of

LONGEST = 256 << 10  # characters of a grammar
HARMLESS = 8 << 10  # characters in which nothing can be nested deep enough
STACK = 4 << 20  # bytes: the main thread of a process has twice as many
SECONDS = 10.0
_SET_PARENT_DEATH_SIGNAL = 1  # from linux/prctl.h


@lru_cache(maxsize=64)
def fault(source: str) -> str | None:
    """Return why a grammar cannot be used; None if it compiles. Call it in a thread."""
    if len(source) > LONGEST:
        return f"it has {len(source)} characters; {LONGEST} are the most"
    if len(source) <= HARMLESS:
        return fault_of(source)
    command = [sys.executable, "-m", "engine.sampling.grammar.check"]
    try:
        done = subprocess.run(
            command,
            input=source.encode(),
            capture_output=True,
            timeout=SECONDS,
            process_group=0,  # a terminal's Ctrl-C would look like a grammar that cannot be used
        )
    except subprocess.TimeoutExpired:
        return f"it was not compiled within {SECONDS:.0f} seconds"
    if done.returncode:
        return "it is nested too deeply"
    return done.stdout.decode() or None


def _end_with_parent() -> None:
    """Have the kernel end this process with the one that waits for it."""
    if sys.platform == "linux":  # elsewhere the grammar is compiled to its end, for nobody
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))


def _main() -> None:
    _end_with_parent()
    source = sys.stdin.buffer.read().decode()
    stack_size(STACK)
    thread = Thread(target=lambda: print(fault_of(source) or "", end=""))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
