"""Twenty seconds of chaos."""

import pytest

from tests.chaos import stage
from tests.chaos.piece import play

SECONDS = 20.0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_some_chaos_changes_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "IDLE_UNLOAD_S", 5.0)  # is waited for at the end
    found = play(1, SECONDS, only=0, act_seconds=4 * SECONDS)
    assert found.failures == []
    assert found.leaks == []
    assert found.verdicts["same"] > 0
    assert sum(found.steps.values()) > 0
