"""No engine outlives its test here either."""

from tests.engine.conftest import closed_engines

__all__ = ["closed_engines"]
