"""Forecasts of drafts that go on while a pass waits for its weights."""

from dataclasses import replace

import pytest

from engine.drafting.method import MethodFacts, facts_of
from engine.drafting.tree import Bounds
from engine.planning.assumed import Machine, complete_times
from engine.planning.forecast import Forecast, make_forecast
from engine.planning.memory import Memory
from engine.planning.plan import make_plan
from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec
from engine.timing import StepTimes
from tests.engine.planning.test_plan import ALL, DEMAND, LAYER

AGREEMENT, DEPTH, STEP = 0.9, 8, 0.05
FACTS = MethodFacts(
    Bounds(DEPTH, 2, 2, 64), agreement=AGREEMENT, has_draft_steps=True, is_tuned=False
)
DEMANDED = replace(
    DEMAND, draft=replace(DEMAND.draft, substitute_bytes=[1] * len(DEMAND.unit_bytes))
)
LINK_S = 1.0  # of all units


def forecast(compute: float, facts: MethodFacts = FACTS, decode: float = 0.0) -> Forecast:
    """Return the forecast where computing takes these seconds, and decoding, if weights are coded.

    Coded weights have half of the bytes.
    """
    demand = DEMANDED
    if decode:
        demand = replace(DEMANDED, coded_bytes=[size // 2 for size in DEMANDED.unit_bytes])
    memory = Memory(40 * LAYER, 1 << 40, has_own_memory=True)
    spec = ModelSpec("m", TargetSpec("m"), stream=StreamSpec(tier="ram", resident=0))
    passes, draft = StepTimes(), StepTimes()
    passes.observe(64, compute)
    draft.observe(FACTS.bounds.width, STEP)
    machine = Machine(
        memory,
        ram_gbps=ALL / LINK_S / 1e9,
        disk_gbps=1.0,
        passes=passes,
        draft=draft,
        decoding_gbps={True: ALL / decode / 1e9} if decode else {},
    )
    plan = make_plan(spec, demand, memory)
    return make_forecast(plan, demand, facts, complete_times(machine, demand, plan), users=1)


@pytest.mark.parametrize("waiting", [0.0, 0.1, DEPTH * STEP, 0.9])
def test_a_part_of_what_is_drafted_while_a_pass_waits_is_saved(waiting: float) -> None:
    found = forecast(LINK_S - waiting)
    saved = AGREEMENT ** (DEPTH + 1) * min(waiting, DEPTH * STEP)
    assert found.draft_seconds == pytest.approx(DEPTH * STEP - saved)
    alone = forecast(LINK_S - waiting, replace(FACTS, drafts_ahead=False))
    assert alone.draft_seconds == pytest.approx(DEPTH * STEP)
    assert (found.tokens_per_second > alone.tokens_per_second) is (waiting > 0)


def test_coded_weights_leave_less_waiting_in_which_to_draft() -> None:
    """With the pass alone, coded weights would be faster; with drafting ahead, plain ones are."""
    plain, coded = forecast(0.4), forecast(0.4, decode=0.55)
    assert coded.pass_seconds < plain.pass_seconds
    assert plain.draft_seconds < coded.draft_seconds == pytest.approx(DEPTH * STEP, rel=0.06)
    assert coded.tokens_per_second < plain.tokens_per_second
    ahead = replace(FACTS, drafts_ahead=False)
    assert forecast(0.4, ahead, 0.55).tokens_per_second > forecast(0.4, ahead).tokens_per_second


def test_trees_that_are_not_tuned_have_all_levels() -> None:
    slow = 40 * LINK_S  # no level pays
    assert forecast(slow).depth == DEPTH
    free = replace(FACTS, is_tuned=True, agreement=0.01)
    assert forecast(LINK_S, free).depth < DEPTH


def test_the_settings_say_whether_drafts_go_on_and_are_tuned() -> None:
    found = facts_of("subspec", DraftSpec(ahead=False, tuned=False))
    assert not found.drafts_ahead and not found.is_tuned
    assert facts_of("subspec").drafts_ahead and facts_of("subspec").is_tuned
