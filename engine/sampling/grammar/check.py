"""A check whether a grammar compiles, in a separate process if compiling might crash.

llguidance recurses along rules and references, so a chain of some thousands of them overflows the
stack and ends the process. A grammar that compiles here, with half of the stack, compiles in the
engine too.
"""

import ctypes
import signal
import subprocess
import sys
from functools import lru_cache
from threading import Thread, stack_size

from engine.sampling.grammar.grammar import compile_error

MAX_CHARACTERS = 256 << 10  # of a grammar
SAFE_CHARACTERS = 8 << 10  # shorter grammars cannot be nested deeply enough to crash
STACK_BYTES = 4 << 20  # the main thread of a process has twice as many
TIMEOUT_SECONDS = 10.0
_SET_PARENT_DEATH_SIGNAL = 1  # from linux/prctl.h


@lru_cache(maxsize=64)
def check_grammar(source: str) -> str | None:
    """Return the reason why a grammar cannot be used, or None if it compiles.

    This may take up to `TIMEOUT_SECONDS`, so call it in a thread.
    """
    if len(source) > MAX_CHARACTERS:
        return f"it has {len(source)} characters; at most {MAX_CHARACTERS} are allowed"
    if len(source) <= SAFE_CHARACTERS:
        return compile_error(source)
    command = [sys.executable, "-m", "engine.sampling.grammar.check"]
    try:
        done = subprocess.run(
            command,
            input=source.encode(),
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            process_group=0,  # a terminal's Ctrl-C would look like a grammar that cannot be used
        )
    except subprocess.TimeoutExpired:
        return f"it did not compile within {TIMEOUT_SECONDS:.0f} seconds"
    if done.returncode:
        return "it is nested too deeply"
    return done.stdout.decode() or None


def _end_with_parent() -> None:
    """Have the kernel end this process with the one that waits for it."""
    if sys.platform == "linux":  # elsewhere it may outlive its parent
        ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))


def _main() -> None:
    _end_with_parent()
    source = sys.stdin.buffer.read().decode()
    stack_size(STACK_BYTES)
    thread = Thread(target=lambda: print(compile_error(source) or "", end=""))
    thread.start()
    thread.join()


if __name__ == "__main__":
    _main()
