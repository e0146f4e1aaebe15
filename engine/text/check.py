"""Checking a tokenizer.json in a process of its own, under limits of time and memory.

The tokenizers library may panic, overflow its stack or take unbounded memory for a file that was
made to do so. A file that passes this check is then read in the engine.
"""

import resource
import subprocess
import sys
from pathlib import Path

MEMORY = 1 << 30  # bytes of addresses; the largest published file (33 MB) takes 0.6 GB
CPU_SECONDS = 8
SECONDS = 60.0  # on a machine with other work
LARGEST_ID = 1 << 24


def fault(path: Path) -> str | None:
    """Return why a tokenizer.json cannot be used; None if it can be read."""
    limits = [str(MEMORY), str(CPU_SECONDS)]
    command = [sys.executable, "-m", "engine.text.check", str(path), *limits]
    try:
        done = subprocess.run(command, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return f"it was not read within {SECONDS:.0f} seconds"
    if done.returncode:
        return (
            f"reading it takes more than {CPU_SECONDS} seconds or {MEMORY >> 20} MiB, or crashes "
            "the tokenizers library"
        )
    return done.stdout.decode(errors="replace") or None


def _read(path: Path) -> str:
    """Return what is wrong with the file, or "" if the library can read it."""
    import json

    from tokenizers import Tokenizer

    from engine.text.check_parts import fault_of_parts

    text = path.read_text(encoding="utf-8")
    values: object = None
    try:
        values = json.loads(text)  # the library reads it into objects of Python too
        tokenizer = Tokenizer.from_str(text)
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
    except BaseException as error:  # the end of this process: also what is no Exception, a panic
        if isinstance(error, MemoryError):
            raise
        reason = f"{type(error).__name__}: {str(error)[:400]}"
        return fault_of_parts(values, is_read=False) or reason
    if reason := fault_of_parts(values, is_read=True):
        return reason
    if not ids:
        return "its vocabulary is empty"
    if (largest := max(ids)) > LARGEST_ID:
        return f"the token id {largest} is out of range (at most {LARGEST_ID})"
    return ""


def limit_process(memory: int, seconds: int) -> None:
    """Limit this process to `memory` bytes of addresses and `seconds` of CPU time."""
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_CORE, 0)


def _limit(kind: int, wanted: int) -> None:
    """Limit a resource of this process to `wanted`, or to its hard limit if that is lower."""
    _, most = resource.getrlimit(kind)
    limit = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
    resource.setrlimit(kind, (limit, limit))


def _main(path: str, memory: str, seconds: str) -> None:
    limit_process(int(memory), int(seconds))
    print(_read(Path(path)), end="")


if __name__ == "__main__":
    _main(*sys.argv[1:])
