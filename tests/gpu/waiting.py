"""torch's check that the host does not wait for a CUDA device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise an error in a `with` block if the host waits for the device."""
    with _mode("error"):
        yield


@contextmanager
def waiting_allowed() -> Iterator[None]:
    """Let the host wait in a `with` block inside of `no_waiting`."""
    with _mode("default"):
        yield


@contextmanager
def _mode(mode: str) -> Iterator[None]:
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(mode)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)
