"""The number of threads that compute a model on a CPU."""

import logging
from collections.abc import Callable

import torch

from engine.model.row_bits import threads_that_keep_bits

log = logging.getLogger(__name__)

FEWER_THREADS = 0.9  # of the time with more of them, for which fewer threads are chosen


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


def choose_threads(seconds: Callable[[], float], dtype: torch.dtype | None) -> None:
    """Set the number of torch's threads to the one with which a step is fastest.

    It begins with the present number and halves it while that is clearly faster. Waking a thread
    may take longer than the work it saves (a small model on two cores: 1.5 times as fast with one
    thread). Smaller differences are noise, and decoding weights gains more from threads.

    Args:
        seconds: measures the step with the present number of threads.
        dtype: the type to compute in under strict numerics, where the bits of a row must not
            depend on its place; None: any number of threads may be used.
    """
    threads, best = torch.get_num_threads(), seconds()
    while threads > 1:
        half = threads // 2
        fewer = half if dtype is None else threads_that_keep_bits(half, dtype)
        torch.set_num_threads(fewer)
        now = seconds()
        if now > FEWER_THREADS * best:
            torch.set_num_threads(threads)
            return
        threads, best = fewer, now
