"""Half a minute of chaos."""

import pytest

from tests.chaos.piece import play


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_half_a_minute_of_chaos_changes_and_loses_nothing() -> None:
    found = play(1, 30.0, only=0, act_seconds=4 * 30.0)
    assert found.failures == []
    assert found.leaks == []
    assert found.verdicts["same"] > 0
    assert sum(found.steps.values()) > 0
