"""Plans with states of recurrent layers: fewer sequences where they are large, and refusals."""

from dataclasses import replace

import pytest

from engine.drafting.method import DraftNeeds
from engine.planning.plan import Plan
from engine.planning.refusal import DoesNotFit
from engine.planning.states import FURTHER_NODES, STATE_SHARE
from tests.engine.planning.test_plan import ALL, DEMAND, KV, MIB, ROOM, plan

STATE, STASH, NODE = 10 * MIB, 5 * MIB, MIB // 4
HYBRID = replace(DEMAND, state_bytes=STATE, stash_bytes=STASH)
DRAFTED = replace(HYBRID, node_bytes=NODE, draft=DraftNeeds(scratch_rows=60, draft_rows=80))


def check(found: Plan) -> None:
    """Check the sizes of a plan."""
    wanted = found.num_states * (STATE + STASH) + found.stored_states * STATE
    wanted += found.num_nodes * NODE
    assert found.state_bytes == wanted
    parts = (found.resident_bytes, found.ring_bytes, found.kv_bytes, found.state_bytes)
    assert sum(parts) <= found.device_bytes


def test_each_sequence_has_a_state_and_a_stash_and_prefixes_have_states() -> None:
    found = plan(3 * (ALL + KV + ROOM), demand=HYBRID)
    check(found)
    assert (found.max_sequences, found.num_states) == (8, 8)
    assert found.stored_states == 4 * 8
    assert f"{8 + 32} states (440.0 MiB)" in str(found)
    assert plan(3 * (ALL + KV + ROOM), demand=HYBRID, audit=0.1).num_states == 8 + 1
    assert plan(3 * (ALL + KV + ROOM), demand=HYBRID, prefix_cache=False).stored_states == 0


def test_a_draft_of_the_same_layers_keeps_some_rows_of_each_sequence() -> None:
    found = plan(3 * (ALL + KV + ROOM), demand=DRAFTED)
    check(found)
    assert found.num_nodes == 80 + 7 * FURTHER_NODES
    assert f"states and {found.num_nodes} drafted rows" in str(found)
    assert plan(3 * (ALL + KV + ROOM), demand=DRAFTED, max_sequences=1).num_nodes == 80
    small = replace(DRAFTED, draft=replace(DRAFTED.draft, scratch_rows=30))
    assert plan(3 * (ALL + KV + ROOM), demand=small, max_sequences=1).num_nodes == 2 * 30
    few = plan(900 * MIB, demand=DRAFTED)
    check(few)
    assert few.stored_states >= few.max_sequences
    assert few.max_sequences < plan(900 * MIB, demand=HYBRID).max_sequences
    assert few.state_bytes <= STATE_SHARE * 900 * MIB


@pytest.mark.parametrize("device", [500 * MIB, 700 * MIB, 900 * MIB])
def test_large_states_mean_fewer_sequences(device: int) -> None:
    found = plan(device, demand=HYBRID)
    check(found)
    assert found.max_sequences == found.num_states < 8
    assert found.state_bytes <= STATE_SHARE * device


def test_sequences_that_are_asked_for_are_refused_with_the_numbers() -> None:
    with pytest.raises(DoesNotFit, match=r"40 states of recurrent layers 600\.0 MiB \(fewer with"):
        plan(700 * MIB, demand=HYBRID, max_sequences=40)


def test_a_model_without_recurrent_layers_has_no_states() -> None:
    found = plan(ALL + KV + ROOM)
    assert (found.num_states, found.stored_states, found.state_bytes) == (0, 0, 0)
