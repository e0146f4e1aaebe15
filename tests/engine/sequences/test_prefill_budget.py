"""Tests of how many prompt rows may join a pass with decoding sequences."""

from engine.sequences.scheduler import PrefillBudget
from engine.spec import TILE
from engine.timing import PassTimes


def budget_of(link_seconds: float, largest: int = 4096) -> PrefillBudget:
    """Return the budget for a model that computes a tile of 64 rows in a second."""
    passes = PassTimes(granularity=64)
    passes.observe(64, 1.0, link_seconds)
    return PrefillBudget(passes, largest)


def observe(budget: PrefillBudget, seconds: float, *, prompt: bool, times: int = 1) -> None:
    for _ in range(times):
        budget.observe(seconds, with_prompt=prompt, decoding=True)


def test_prompt_rows_fill_the_time_in_which_weights_are_loaded() -> None:
    assert budget_of(link_seconds=10.0).rows(64) == 576  # 64 + 576 rows take 10 of 10.4 seconds
    assert budget_of(link_seconds=10.0, largest=256).rows(64) == 256
    assert budget_of(link_seconds=0.0).rows(64) == TILE


def test_fewer_prompt_rows_may_join_after_a_long_context() -> None:
    """Attention to the context takes time besides that of the rows themselves."""
    passes = PassTimes(granularity=64, pair_seconds=1e-5)
    passes.observe(64, 1.0, 10.0)
    budget = PrefillBudget(passes, 4096)
    counts = [budget.rows(64, context) for context in (0, 1000, 3000, 8000)]
    assert counts == [512, 320, 192, 64]


def test_the_budget_halves_after_a_long_pass_and_recovers_after_short_ones() -> None:
    budget = budget_of(link_seconds=10.0)
    observe(budget, 10.0, prompt=False)
    observe(budget, 13.0, prompt=True)
    assert budget.rows(64) == 256
    observe(budget, 13.0, prompt=True, times=9)
    assert budget.rows(64) == TILE
    observe(budget, 12.0, prompt=True, times=99)
    assert budget.rows(64) == 576


def test_the_budget_grows_when_passes_become_slower() -> None:
    budget = budget_of(link_seconds=1.0)
    assert budget.rows(64) == TILE
    observe(budget, 10.0, prompt=False)
    assert budget.rows(64) == 576


def test_passes_without_decoding_or_comparison_do_not_change_the_budget() -> None:
    budget = budget_of(link_seconds=10.0)
    budget.observe(1000.0, with_prompt=True, decoding=True)
    observe(budget, 10.0, prompt=False)
    budget.observe(1000.0, with_prompt=True, decoding=False)
    assert budget.rows(64) == 576
