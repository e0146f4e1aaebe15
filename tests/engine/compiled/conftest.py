"""Fixtures for compiled code."""

import sys
from collections.abc import Iterator

import pytest
import torch

from engine.compiled import compiler


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let numba be missing."""
    monkeypatch.setitem(sys.modules, "numba", None)
    compiler.has_numba.cache_clear()
    yield
    compiler.has_numba.cache_clear()


@pytest.fixture
def threads() -> Iterator[None]:
    """Restore the number of threads after the test."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
