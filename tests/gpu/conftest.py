"""Fixtures of the CUDA tests: engines are closed after each test."""

from tests.engine.conftest import closed_engines

__all__ = ["closed_engines"]
