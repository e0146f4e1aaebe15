"""The number of threads that compute a model on a CPU."""

import hashlib
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from engine.cache_files import cache_root, replace_file
from engine.errors import ModelError
from engine.files import exists, read_object
from engine.model.row_bits import threads_that_keep_bits

FOLDER = "threads"  # of the cache: one file for each structure of a model
FEWER_THREADS = 0.9  # of the time with more of them, for which fewer threads are chosen
OTHER_THREADS = 0.7  # of the time with those of an earlier load, for which others are chosen

log = logging.getLogger(__name__)


def use_threads_that_keep_bits(dtype: torch.dtype) -> None:
    """Lower the number of torch's threads, if needed, to one that strict numerics can use."""
    most = torch.get_num_threads()
    threads = threads_that_keep_bits(most, dtype)
    if threads < most:
        log.info(
            "%d threads compute, not %d, with which the libraries of this processor round rows of"
            " a product by their place. numerics: fast uses all",
            threads,
            most,
        )
        torch.set_num_threads(threads)


def choose_strict_threads(
    seconds: Callable[[], float], dtype: torch.dtype, model: dict[str, Any]
) -> None:
    """Set the number of torch's threads under strict numerics, for this load and later ones.

    With another number of threads, oneDNN may round other bits of bfloat16 products. An answer that
    was begun before a restart, and KV that was stored, can only be gone on with in the same bits.
    So the number of an earlier load is kept, unless another one is clearly faster now: the machine
    may have been busy then.

    Args:
        seconds: measures a step with the present number of threads.
        dtype: the type that the model computes in.
        model: the values of its configuration.
    """
    most = torch.get_num_threads()
    path = cache_root() / FOLDER / f"{_key(model, dtype, most)}.json"
    known = _read(path, most)
    best = choose_threads(seconds, lambda half: threads_that_keep_bits(half, dtype))
    threads = torch.get_num_threads()
    if known is not None and known != threads:
        torch.set_num_threads(known)
        keeps_bits = threads_that_keep_bits(known, dtype) == known
        if keeps_bits and best >= OTHER_THREADS * seconds():
            return
        torch.set_num_threads(threads)
    if threads != known:
        _write(path, threads)


def choose_threads(
    seconds: Callable[[], float], allowed: Callable[[int], int] = lambda number: number
) -> float:
    """Set the number of torch's threads to the one with which a step is fastest.

    It begins with the present number and halves it while that is clearly faster. Waking a thread
    may take longer than the work it saves (a small model on two cores: 1.5 times as fast with one
    thread). Smaller differences are noise, and decoding weights gains more from threads.

    Return the seconds with that number.

    Args:
        seconds: measures the step with the present number of threads.
        allowed: returns the largest number, up to one, that may be used.
    """
    threads, best = torch.get_num_threads(), seconds()
    while threads > 1:
        fewer = allowed(threads // 2)
        torch.set_num_threads(fewer)
        now = seconds()
        if now > FEWER_THREADS * best:
            torch.set_num_threads(threads)
            break
        threads, best = fewer, now
    return best


def _key(model: dict[str, Any], dtype: torch.dtype, most: int) -> str:
    """Return a digest of everything that the choice depends on."""
    parts = [model, str(dtype), most, torch.__version__]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def _read(path: Path, most: int) -> int | None:
    """Return the number of an earlier load; None if there is none, or its file is damaged."""
    if not exists(path):
        return None
    with suppress(ModelError):
        number = read_object(path).get("threads")
        return number if isinstance(number, int) and 0 < number <= most else None
    return None


def _write(path: Path, threads: int) -> None:
    """Store the number. A cache that cannot be written leaves the choice to each load."""
    with suppress(OSError):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, memoryview(json.dumps({"threads": threads}).encode()))
