"""Fixtures of `make test-clients`: a server with the demo model."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.demo_server import demo_server

STORY = "Tell me a story."
TIME = "What time is it in Paris?"


def get_time(city: str) -> str:
    """The time in a city"""
    return '{"time": "14:05"}'


@pytest.fixture(scope="session")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve with the interpreter UNDERSTUDY_PYTHON of another environment; return the base URL."""
    python = os.environ.get("UNDERSTUDY_PYTHON", sys.executable)
    with demo_server(python, tmp_path_factory.mktemp("home")) as (_, url):
        yield url
