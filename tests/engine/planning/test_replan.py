"""Plans for a loaded model whose memory has changed: what moves, in which order, and when."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from engine.drafting.method import DraftNeeds
from engine.planning.footprint import Demand
from engine.planning.memory import Memory
from engine.planning.plan import Plan, make_plan
from engine.planning.replan import Replanner, Room, _spread_order
from engine.spec import ModelSpec, StreamSpec, TargetSpec
from tests.engine.planning.test_plan import ALL, DEMAND, HEAD, KV, LAYER, LAYERS, MIB, ROOM

ENOUGH = 1 << 40
RINGS = 3 * LAYER  # of the usual ring
COPY = 30 * MIB
SUBSPEC = DraftNeeds(
    scratch_rows=8,
    draft_rows=8,
    weight_bytes=LAYERS * COPY + COPY,
    substitute_bytes=[COPY] * (LAYERS + 1),
)


def replanner(
    device: int,
    *,
    ram: int = ENOUGH,
    own: bool = True,
    demand: Demand = DEMAND,
    **stream: Any,
) -> Replanner:
    """Return what replans a model that was loaded within so much memory."""
    spec = ModelSpec("m", TargetSpec("m"), stream=StreamSpec(**stream))
    return Replanner(spec, demand, make_plan(spec, demand, Memory(device, ram, own)))


def room(device: int = ENOUGH, ram: int = ENOUGH, total: int | None = None) -> Room:
    return Room(device, ram, total)


def counts(plan: Plan) -> tuple[int, int, int]:
    """Return the numbers of units on the device, in RAM and on disk."""
    return plan.tiers.count("resident"), plan.tiers.count("ram"), plan.tiers.count("disk")


def test_the_plan_of_the_load_fits_the_room_of_the_load() -> None:
    for device in (ALL + KV + ROOM, ALL, 700 * MIB):
        made = replanner(device)
        assert made.fit(room(device)).tiers == made.loaded.tiers
        assert made.with_tiers(made.loaded.tiers, made.loaded.num_pages) == made.loaded


def test_layers_leave_the_device_for_ram_and_the_head_stays() -> None:
    made = replanner(ALL + KV + ROOM)
    assert counts(made.loaded) == (LAYERS + 1, 0, 0)
    need = made.loaded.device_bytes
    less = made.fit(room(need - 1))
    # The first layers that leave only pay for the ring.
    assert counts(less) == (LAYERS + 1 - 4, 4, 0)
    assert (less.slots, less.ring_bytes) == (3, RINGS)
    assert less.device_bytes == need - LAYER
    assert less.ram_unit_bytes == 4 * LAYER
    least = made.fit(room(0))
    assert counts(least) == (1, LAYERS, 0)
    assert least.resident_bytes == HEAD
    assert (least.num_pages, least.max_rows) == (made.loaded.num_pages, made.loaded.max_rows)


def test_units_leave_ram_for_the_disk() -> None:
    made = replanner(600 * MIB)
    resident, waiting, _ = counts(made.loaded)
    assert waiting + resident == LAYERS + 1
    host = made.loaded.host_bytes
    less = made.fit(room(made.loaded.device_bytes, host - 3 * LAYER))
    assert counts(less)[0] == resident, "what is resident stays"
    assert less.host_bytes <= host - 3 * LAYER
    assert counts(less)[2] in (3, 4), "but for the buffers of reads"
    assert set(made.fit(room(made.loaded.device_bytes, 0)).tiers) == {"resident", "disk"}


def test_where_the_device_computes_in_ram_layers_leave_for_the_disk() -> None:
    made = replanner(ALL + KV + ROOM, own=False)
    assert counts(made.loaded) == (LAYERS + 1, 0, 0)
    need = made.loaded.device_bytes + made.loaded.host_bytes
    for less in (room(device=need - LAYER), room(total=need - LAYER), room(ram=0, total=0)):
        assert set(made.fit(less).tiers) == {"resident", "disk"}
        assert counts(made.fit(less))[0] < LAYERS


@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_the_tier_of_the_models_file_is_kept(tier: str) -> None:
    made = replanner(ALL, tier=tier, resident=4)
    assert made.fit(room()).tiers == made.loaded.tiers, "no more than asked for"
    assert set(made.fit(room(device=0)).tiers) == {tier}


def test_no_more_layers_come_than_there_were_at_the_load() -> None:
    made = replanner(700 * MIB, ram=900 * MIB)
    assert counts(made.loaded)[2] > 0
    assert made.fit(room()).tiers == made.loaded.tiers
    assert made.next_plan(made.loaded, room(), room()) is made.loaded


def test_a_layer_that_leaves_needs_a_copy_for_the_draft() -> None:
    demand = replace(DEMAND, draft=SUBSPEC)
    made = replanner(1300 * MIB, demand=demand)
    loaded = made.loaded
    layers = counts(loaded)[0]
    assert loaded.draft_bytes > 0 and layers > 2
    less = made.fit(room(loaded.device_bytes - 1))
    assert counts(less)[0] == layers - 1
    assert less.draft_bytes == loaded.draft_bytes + COPY
    assert less.device_bytes == loaded.device_bytes - LAYER + COPY


def test_a_draft_of_resident_layers_alone_has_no_copies() -> None:
    demand = replace(DEMAND, draft=SUBSPEC)
    made = replanner(2 * (ALL + KV + ROOM), demand=demand)
    assert made.loaded.draft_bytes == 0
    assert made.fit(room(made.loaded.device_bytes - 1)).draft_bytes == 0


@given(st.integers(0, 1600), st.integers(0, 1600), st.integers(0, 1600), st.booleans())
def test_plans_fit_their_room_and_differ_in_as_few_layers_as_possible(
    device: int, ram: int, other: int, own: bool
) -> None:
    made = replanner(ALL, own=own)
    first, second = made.fit(room(device * MIB, ram * MIB)), made.fit(room(other * MIB, ram * MIB))
    for plan, limit in ((first, device), (second, other)):
        over = room(limit * MIB, ram * MIB).shortage(plan)
        assert "device" not in over or counts(plan)[0] == 0
        assert "ram" not in over or counts(plan)[1] == 0
    sets = [{u for u, tier in enumerate(p.tiers) if tier == "resident"} for p in (first, second)]
    assert sets[0] <= sets[1] or sets[1] <= sets[0]


@given(st.lists(st.integers(300, 1500), max_size=12))
def test_figures_that_vary_a_little_move_nothing(sizes: list[int]) -> None:
    made = replanner(ALL)
    plan = made.loaded
    for size in sizes:
        hold, take = room(size * MIB), room(size * 95 // 100 * MIB)
        plan = made.next_plan(plan, hold, take)
        assert not hold.shortage(plan) or counts(plan)[0] == 0
        for share in (97, 99, 100, 102, 104):
            there = size * share // 100
            again = made.next_plan(plan, room(there * MIB), room(there * 95 // 100 * MIB))
            assert counts(again)[0] >= counts(plan)[0] or hold.shortage(plan) or share < 100
    steady = made.next_plan(plan, hold, take) if sizes else plan
    assert steady == plan, "the same figures move nothing twice"


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 30, 61])
def test_each_beginning_of_the_order_is_spread(count: int) -> None:
    order = _spread_order(count)
    assert sorted(order) == list(range(count))
    for length in range(1, count + 1):
        places = sorted(order[:length])
        gaps = [after - before for before, after in pairwise([*places, places[0] + count])]
        assert max(gaps) <= 2 * -(-count // length) + 1, "as evenly as binary fractions"
