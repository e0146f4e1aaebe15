"""torch's check that the host does not wait for a CUDA device."""

import warnings
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
    _set(mode)
    try:
        yield
    finally:
        _set(before)


def _set(mode: int | str) -> None:
    with warnings.catch_warnings():  # torch says once that the check is a prototype
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode(mode)
