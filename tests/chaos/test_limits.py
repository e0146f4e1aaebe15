"""Limits of memory that are lowered and raised again under load alter and lose no text."""

from collections.abc import Iterator
from contextlib import ExitStack
from itertools import product
from pathlib import Path

import pytest

from benchmarks.memory_group import MemoryGroup, NoMemoryGroup, memory_group
from tests.chaos.limits import DRAFTS, TIERS, change_limits, fill_group, lower_group

SECONDS = 30.0


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("tier", "draft"), [*product(TIERS, DRAFTS)])
def test_limits_that_change_under_load_alter_no_text(tier: str, draft: str, tmp_path: Path) -> None:
    found = change_limits(tmp_path, SECONDS, tier, draft, seed=1)
    assert [own for own in found.attempts if own.verdict != "same"] == []
    assert found.verdicts["same"] > 0
    assert found.replans["device"] > 0 and found.replans["freed"] > 0
    assert len(found.resident) > 1


@pytest.fixture
def group() -> Iterator[MemoryGroup]:
    with ExitStack() as stack:
        try:
            made = stack.enter_context(memory_group("understudy-limits"))
        except NoMemoryGroup as error:
            pytest.skip(str(error))
        yield made


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_lowered_limit_of_a_cgroup_makes_the_kv_smaller(
    group: MemoryGroup, tmp_path: Path
) -> None:
    found = lower_group(tmp_path, SECONDS, group, seed=1)
    assert [own for own in found.attempts if own.verdict != "same"] == []
    assert found.verdicts["same"] > 0
    assert found.held[-1] < 0.9 * found.held[0]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_full_cgroup_ends_the_engine_alone_and_answers_go_on(
    group: MemoryGroup, tmp_path: Path
) -> None:
    found = fill_group(tmp_path, 2 * SECONDS, group, seed=1)
    assert [own for own in found.attempts if own.verdict != "same"] == []
    assert found.verdicts["same"] > 0
    assert found.kills > 0 and found.has_other
    log = (tmp_path / "server-1.log").read_text()
    assert "the memory limit of its cgroup was reached" in log
