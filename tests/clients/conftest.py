"""Fixtures of `make test-clients`: a server with the demo model, and one with scripted models."""

import os
import sys
from collections.abc import Iterator

import pytest

from tests.clients.scripted.server import ScriptedServer, scripted_server
from tests.demo_server import demo_server

STORY = "Tell me a story."
TIME = "What time is it in Paris?"


def get_time(city: str) -> str:
    """The time in a city"""
    return '{"time": "14:05"}'


@pytest.fixture(scope="session")
def python() -> str:
    """Return the interpreter of the servers, which have another environment than the tests."""
    return os.environ.get("UNDERSTUDY_TEST_PYTHON", sys.executable)


@pytest.fixture(scope="session")
def url(python: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the demo model; return the base URL."""
    with demo_server(python, tmp_path_factory.mktemp("home")) as (_, url):
        yield url


@pytest.fixture(scope="session")
def scripted_session(
    python: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ScriptedServer]:
    """Serve the scripted models and the demo models for all tests."""
    with scripted_server(python, tmp_path_factory.mktemp("scripted")) as server:
        yield server


@pytest.fixture
def scripted(scripted_session: ScriptedServer) -> ScriptedServer:
    """Return the server with the scripted models, and no requests in its record."""
    scripted_session.forget()
    return scripted_session
