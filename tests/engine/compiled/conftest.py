"""Fixtures for compiled code."""

import sys
from collections.abc import Iterator

import pytest

from engine.compiled import compiler


@pytest.fixture
def no_numba(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let numba be missing."""
    monkeypatch.setitem(sys.modules, "numba", None)
    compiler.has_numba.cache_clear()
    yield
    compiler.has_numba.cache_clear()
