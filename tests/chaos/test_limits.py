"""A device limit that is lowered by a fifth and raised again under load alters no text."""

from pathlib import Path

import pytest

from tests.chaos.limits import DRAFTS, TIERS, change_limits

SECONDS = 30.0


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("draft", DRAFTS)
def test_limits_that_change_under_load_alter_no_text(tier: str, draft: str, tmp_path: Path) -> None:
    found = change_limits(tmp_path, SECONDS, tier, draft, seed=1)
    assert [own for own in found.attempts if own.verdict != "same"] == []
    assert found.verdicts["same"] > 0
    assert found.replans["device"] > 0 and found.replans["freed"] > 0
    assert len(found.resident) > 1
