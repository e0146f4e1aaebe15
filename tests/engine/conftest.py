"""A fixture that closes all engines after each test."""

from collections.abc import Iterator

import pytest

from tests.engine.models import close_all


@pytest.fixture(autouse=True)
def closed_engines() -> Iterator[None]:
    yield
    close_all()
