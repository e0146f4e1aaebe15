"""Fixtures of the tests of peers: short times, and documents of APIs that are made once."""

import pytest

from cluster import peer, peers, streams
from server.http.routes import peer as route
from tests.server.conftest import documents_made_once

__all__ = ["documents_made_once", "short_times"]


@pytest.fixture(autouse=True)
def short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let peers be asked often, and be lost after a short silence."""
    monkeypatch.setattr(peers, "POLL_SECONDS", 0.03)
    monkeypatch.setattr(peers, "LONGEST_POLL", 0.06)
    monkeypatch.setattr(peers, "FAULTY_SECONDS", 0.3)
    monkeypatch.setattr(streams, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(route, "SIGN_SECONDS", 0.05)
    monkeypatch.setattr(peer, "SILENCE_SECONDS", 1.0)
