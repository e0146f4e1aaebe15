"""Tests of replicas on Ray: `make test-cluster` runs them, in an environment with Ray."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Skip these tests where Ray is not installed."""
    if find_spec("ray") is None:
        for item in items:
            if FOLDER in item.path.parents:
                item.add_marker(pytest.mark.skip("needs Ray: use `make test-cluster`"))
