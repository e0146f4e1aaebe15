"""Fixtures of the tests of benchmarks: no tokenizer is checked twice."""

from tests.engine.conftest import tokenizers_checked_once

__all__ = ["tokenizers_checked_once"]
