"""Plans for a demand and a memory: resident units, tiers, slots, KV pages, and refusals."""

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from engine.drafting.method import DraftNeeds
from engine.errors import ModelError
from engine.kv.page_pool import PAGE
from engine.model.blockwise import MAX_SCORES
from engine.planning.footprint import LARGEST_PASS, Demand
from engine.planning.memory import Memory
from engine.planning.plan import DISK_STAGING, SHORTEST_CONTEXT, Plan, make_plan
from engine.planning.refusal import DoesNotFit
from engine.spec import MemorySpec, ModelSpec, StreamSpec, TargetSpec
from engine.streaming.page_store import STAGING_BYTES
from engine.weights.layout import LayerUnits, whole_layers
from engine.weights.packing import TEMPORARY_BYTES

MIB = 1 << 20
LAYERS, LAYER, HEAD = 10, 100 * MIB, 50 * MIB
CONTEXT = 1024  # 16 pages of 1 MiB
ROOM = 3 * MIB + STAGING_BYTES  # for activations, and for staging idle KV pages
ALL = LAYERS * LAYER + HEAD
KV = 8 * 16 * MIB  # of eight sequences at full length
GRAPHS = 100 * MIB  # of a draft model over this KV: 18 of 4 MiB, their inputs, the largest step

NO_DRAFT = DraftNeeds(scratch_rows=0)
DEMAND = Demand(
    unit_bytes=[LAYER] * LAYERS + [HEAD],
    layers=whole_layers(LAYERS),
    expanded_bytes=0,
    other_device_bytes=0,
    hidden_size=1,
    widest=1,
    num_heads=1,
    vocab_size=1,
    item_bytes=1,
    kv_bytes_per_token=MIB // PAGE,
    draft=NO_DRAFT,
    context_length=CONTEXT,
)


def plan(
    device: int,
    *,
    ram: int = 1 << 40,
    has_own_memory: bool = True,
    demand: Demand = DEMAND,
    stream: dict[str, Any] | None = None,
    **spec: Any,
) -> Plan:
    """Return the plan for `device` bytes on the device and `ram` bytes of RAM."""
    wanted = ModelSpec("m", TargetSpec("m"), stream=StreamSpec(**(stream or {})), **spec)
    return make_plan(wanted, demand, Memory(device, ram, has_own_memory))


def residents(found: Plan) -> list[int]:
    return [unit for unit, tier in enumerate(found.tiers) if tier == "resident"]


def test_a_model_that_fits_is_resident_as_a_whole() -> None:
    found = plan(ALL + KV + ROOM)
    assert set(found.tiers) == {"resident"}
    assert (found.slots, found.ring_bytes, found.resident_bytes) == (0, 0, ALL)
    assert found.num_pages == 8 * 16 and found.kv_bytes == KV


def test_with_a_little_less_memory_some_units_stream_and_kv_stays() -> None:
    found = plan(ALL + KV)
    assert found.slots == 3 and found.ring_bytes == 3 * LAYER
    assert residents(found) and len(residents(found)) == (ALL - 3 * LAYER - ROOM) // LAYER
    assert found.tiers[-1] == "ram"
    assert found.num_pages == 8 * 16


@pytest.mark.parametrize("count", range(8))
def test_residents_are_spread_evenly_through_the_depth(count: int) -> None:
    found = plan(3 * LAYER + KV + ROOM + count * LAYER)
    assert len(residents(found)) == count
    for depth in range(LAYERS + 1):
        before = sum(unit < depth for unit in residents(found))
        assert abs(before - count * depth / LAYERS) <= 1, f"above layer {depth}"


@pytest.mark.parametrize("tier", ["ram", "disk"])
def test_a_tier_that_is_asked_for_holds_all_units(tier: str) -> None:
    found = plan(10 * ALL, stream={"tier": tier})
    assert set(found.tiers) == {tier}
    assert found.resident_bytes == 0


def test_tier_resident_is_refused_if_it_does_not_fit() -> None:
    assert set(plan(ALL + KV + ROOM, stream={"tier": "resident"}).tiers) == {"resident"}
    with pytest.raises(ModelError, match=r"resident units 1\.0 GiB"):
        plan(ALL, stream={"tier": "resident"})


@pytest.mark.parametrize(("asked", "got"), [(0, 0), (4, 4), (10, 10), (99, 10)])
def test_as_many_layers_as_asked_for_are_resident(asked: int, got: int) -> None:
    found = plan(10 * ALL, stream={"resident": asked})
    assert residents(found) == [unit for unit in residents(found) if unit < LAYERS]
    assert len(residents(found)) == got


def test_a_layer_in_slices_is_resident_as_a_whole_or_not_at_all() -> None:
    slices = (range(4), range(4, 8), range(8, 12))
    sliced = replace(
        DEMAND,
        unit_bytes=[LAYER] * 16 + [HEAD],
        layers=[LayerUnits(first, "mlp.experts", slices) for first in range(0, 16, 4)],
    )
    found = plan(3 * LAYER + KV + 2 * ROOM + 11 * LAYER, demand=sliced)
    assert residents(found) == [4, 5, 6, 7, 12, 13, 14, 15]
    asked = plan(20 * LAYER, demand=sliced, stream={"resident": 1})
    assert residents(asked) == [8, 9, 10, 11]


def test_a_number_of_residents_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ModelError, match=r"resident units 800\.0 MiB"):
        plan(8 * LAYER, stream={"resident": 8})


@pytest.mark.parametrize("slots", [2, 3, 6])
def test_the_ring_has_as_many_slots_as_asked_for(slots: int) -> None:
    found = plan(20 * LAYER, stream={"tier": "ram", "slots": slots})
    assert (found.slots, found.ring_bytes) == (slots, slots * LAYER)


def test_the_ring_has_two_slots_if_three_do_not_fit() -> None:
    fewest = 5 * MIB  # KV of the shortest context and a page to grow
    assert plan(3 * LAYER + fewest + ROOM).slots == 3
    assert plan(3 * LAYER).slots == 2
    trees = replace(DEMAND, draft=DraftNeeds(scratch_rows=1024))  # 21 MiB of KV at least
    assert plan(3 * LAYER + fewest + ROOM, demand=trees).slots == 2
    assert plan(2 * LAYER + fewest + ROOM).slots == 2
    with pytest.raises(ModelError, match="ring of 3 slots"):
        plan(3 * LAYER, stream={"slots": 3})


def test_a_model_of_few_units_has_no_more_slots_than_units() -> None:
    tiny = replace(DEMAND, unit_bytes=[LAYER, HEAD], layers=whole_layers(1))
    assert plan(LAYER * 9, demand=tiny, stream={"tier": "ram"}).slots == 2


@pytest.mark.parametrize("tier", [None, "disk"])
def test_a_head_that_would_make_every_slot_larger_is_resident(tier: str | None) -> None:
    large = replace(DEMAND, unit_bytes=[LAYER] * LAYERS + [3 * LAYER])
    found = plan(7 * LAYER + KV + ROOM, demand=large, stream={"tier": tier})
    assert found.tiers[-1] == "resident"
    assert found.ring_bytes == 3 * LAYER
    assert len(residents(found)) == (1 if tier else 2)
    asked = plan(20 * LAYER, demand=large, stream={"tier": tier, "resident": 2})
    assert residents(asked) == [2, 7, LAYERS]


def test_a_head_a_little_larger_than_a_layer_travels() -> None:
    larger = replace(DEMAND, unit_bytes=[LAYER] * LAYERS + [LAYER * 7 // 5])
    found = plan(7 * LAYER + KV, demand=larger, stream={"tier": "disk"})
    assert set(found.tiers) == {"disk"}
    assert found.ring_bytes == 3 * LAYER * 7 // 5


def test_a_large_head_counts_when_the_slots_are_chosen() -> None:
    large = replace(DEMAND, unit_bytes=[LAYER] * LAYERS + [3 * LAYER])
    needed = 3 * LAYER + 3 * LAYER + 5 * MIB + ROOM
    assert plan(needed, demand=large).slots == 3
    assert plan(needed - LAYER // 2, demand=large).slots == 2


@pytest.mark.parametrize(
    ("ram", "has_own_memory", "gbps", "tier"),
    [
        (ALL, True, None, "ram"),
        (10 * ALL, False, None, "disk"),  # the device's memory is in RAM, so there is no ram tier
        (10 * ALL, False, 1.0, "ram"),
        (ALL // 2, False, 1.0, "disk"),
    ],
)
def test_units_are_in_the_ram_tier_if_they_fit(
    ram: int, has_own_memory: bool, gbps: float | None, tier: str
) -> None:
    found = plan(5 * LAYER, ram=ram, has_own_memory=has_own_memory, stream={"simulate_gbps": gbps})
    assert set(found.tiers) - {"resident"} == {tier}


def test_units_that_do_not_fit_the_ram_are_on_disk_spread_evenly() -> None:
    found = plan(5 * LAYER, ram=ALL // 2 + DISK_STAGING, stream={"tier": None})
    waiting = [unit for unit, tier in enumerate(found.tiers) if tier == "ram"]
    assert len(waiting) == 5 and found.ram_unit_bytes == 5 * LAYER
    assert found.tiers.count("disk") == len(found.tiers) - len(waiting) - len(residents(found))
    assert all(after - before <= 3 for before, after in pairwise(waiting))
    assert found.staging_bytes == DISK_STAGING


def test_without_a_gpu_device_and_host_share_one_memory() -> None:
    asked: dict[str, Any] = {"has_own_memory": False, "stream": {"tier": "ram", "slots": 2}}
    small = MemorySpec(device=3 * LAYER)
    with pytest.raises(DoesNotFit, match=r"memory\.ram"):
        plan(3 * LAYER, ram=ALL + 2 * LAYER, memory=small, **asked)
    found = plan(3 * LAYER, ram=ALL + 3 * LAYER, memory=small, **asked)
    assert found.device_bytes + found.ram_unit_bytes <= ALL + 3 * LAYER


def test_more_than_the_machines_ram_is_not_planned_for_the_device() -> None:
    with pytest.raises(DoesNotFit, match=r"1\.0 GiB is .* too little"):
        plan(ALL + KV + ROOM, ram=ALL, has_own_memory=False, stream={"tier": "resident"})


@pytest.mark.parametrize("making", [0, 300 * MIB, 600 * MIB])
def test_what_loading_takes_for_a_while_fits_into_ram_beside_the_device(making: int) -> None:
    demand = replace(DEMAND, draft=replace(NO_DRAFT, making_bytes=making, weight_bytes=1))
    asked: dict[str, Any] = {"has_own_memory": False, "demand": demand}
    for free in range(1000 * MIB, 2 * ALL, 50 * MIB):
        found = plan(int(0.8 * free), ram=int(0.9 * free), **asked)
        assert found.device_bytes + found.host_bytes <= int(0.9 * free)
    with pytest.raises(DoesNotFit, match="while loading" if making else "too little"):
        plan(400 * MIB, ram=max(making, 200 * MIB), **asked)


def test_idle_pages_take_a_bounded_share_of_the_ram_that_is_left() -> None:
    found = plan(5 * LAYER, ram=ALL + 400 * MIB)
    left = ALL + 400 * MIB - found.ram_unit_bytes - found.staging_bytes
    assert found.host_pages == left // 4 // MIB
    assert found.host_kv_bytes == found.host_pages * MIB
    plenty = plan(5 * LAYER, ram=100 * ALL)
    assert plenty.host_pages == 2 * plenty.max_sequences * 16, "two full contexts for each sequence"
    limited = plan(5 * LAYER, ram=100 * ALL, memory=MemorySpec(ram=ALL))
    assert limited.ram_unit_bytes + limited.staging_bytes + limited.host_kv_bytes <= ALL


def test_idle_pages_of_a_draft_with_its_own_cache_hold_the_targets_kv_only() -> None:
    own_cache = replace(NO_DRAFT, kv_bytes_per_token=DEMAND.kv_bytes_per_token // 2)
    found = plan(5 * LAYER, demand=replace(DEMAND, draft=own_cache))
    assert found.host_pages and found.host_kv_bytes == found.host_pages * MIB // 2


def test_without_a_gpu_idle_pages_need_ram_set_aside() -> None:
    assert plan(5 * LAYER, has_own_memory=False).host_pages == 0
    assert plan(5 * LAYER, has_own_memory=False, memory=MemorySpec(ram=ALL)).host_pages > 0


def test_resident_units_need_no_substitutes() -> None:
    quarter = [LAYER // 4] * LAYERS + [HEAD // 4]
    separate = replace(NO_DRAFT, weight_bytes=ALL // 4)
    drafted = replace(DEMAND, draft=replace(separate, substitute_bytes=quarter))
    device = 9 * LAYER + KV + ROOM
    found = plan(device, demand=drafted)
    copied = {*range(10)} - {*residents(found)} | {10}  # each draft step reads the 4-bit head
    assert found.draft_bytes == sum(quarter[i] for i in copied)
    assert found.device_bytes <= device
    assert plan(2 * ALL, demand=drafted).draft_bytes == 0
    dense_head = replace(drafted.draft, weight_bytes=ALL, substitute_bytes=[*quarter[:-1], HEAD])
    assert replace(drafted, draft=dense_head).net_bytes(10) == 0
    whole = replace(DEMAND, draft=separate)
    assert len(residents(found)) > len(residents(plan(device, demand=whole)))


def test_resident_units_that_are_expanded_in_a_pass_need_substitutes_too() -> None:
    quarter = [LAYER // 4] * LAYERS + [HEAD // 4]
    own = replace(NO_DRAFT, weight_bytes=ALL // 4, substitute_bytes=quarter)
    packed = replace(DEMAND, expanded_bytes=LAYER, draft=own)
    found = plan(9 * LAYER + KV + ROOM, demand=packed)
    assert residents(found) and found.draft_bytes == ALL // 4


def test_the_temporaries_of_expanding_are_counted_on_a_device_of_its_own() -> None:
    device = 7 * LAYER + KV + ROOM + TEMPORARY_BYTES
    without = plan(device, has_own_memory=True)
    expanding = replace(DEMAND, expansions={".q4_k": ALL})
    found = plan(device, has_own_memory=True, demand=expanding)
    assert found.other_bytes - without.other_bytes == TEMPORARY_BYTES


def test_rows_that_a_draft_runs_are_scratch_too() -> None:
    found = plan(10 * ALL, demand=replace(DEMAND, draft=DraftNeeds(scratch_rows=60, draft_rows=40)))
    assert found.num_pages == 8 * 18, "1,124 tokens a sequence"


def test_with_short_kv_memory_of_long_attention_goes_to_weights() -> None:
    long = replace(DEMAND, context_length=100 * CONTEXT, num_heads=64, num_kv_heads=1)
    found = plan(6 * LAYER, demand=long)
    assert found.num_pages * PAGE < long.context_length
    assert found.activation_bytes < 3 * 8 * 64 * 64 * long.context_length
    assert found.device_bytes <= 6 * LAYER


def test_the_cuda_runtime_is_part_of_memory_device() -> None:
    spec = ModelSpec("m", TargetSpec("m"), memory=MemorySpec(device=8 * LAYER))
    memory = Memory(1 << 40, 1 << 40, True, device_runtime=2 * LAYER)
    assert make_plan(spec, DEMAND, memory).device_bytes <= 8 * LAYER


def test_only_streamed_units_count_towards_the_ram() -> None:
    found = plan(5 * LAYER + KV + ROOM, ram=ALL)  # two units pass through staging buffers at load
    assert len(residents(found)) == 2
    assert set(found.tiers) == {"resident", "ram"}
    assert found.host_bytes == ALL and found.host_pages == 0, "nothing is left for idle KV"


@pytest.mark.parametrize(
    ("layer", "head", "staging"),
    [
        (450, 1100, 1100),  # one unit at a time
        (450, 480, 960),
        (100, 100, 400),  # one for each thread
        (2, 2, 16),  # two for each thread
    ],
)
def test_the_staging_of_loading_is_bounded(layer: int, head: int, staging: int) -> None:
    units = [layer * MIB] * LAYERS + [head * MIB]
    found = plan(1 << 40, demand=replace(DEMAND, unit_bytes=units))
    assert set(found.tiers) == {"resident"}
    assert found.staging_bytes == staging * MIB


def test_a_ram_tier_that_does_not_fit_is_refused_with_what_is_missing() -> None:
    with pytest.raises(ModelError, match=r"memory\.ram: 1000\.0 MiB is 50\.0 MiB too little"):
        plan(5 * LAYER, ram=1000 * MIB, stream={"tier": "ram"})


def test_limits_of_the_file_bound_what_the_machine_has() -> None:
    small = MemorySpec(device=6 * LAYER, ram=ALL // 2)
    found = plan(1 << 40, memory=small)
    assert set(found.tiers) == {"resident", "ram", "disk"}
    assert found.device_bytes <= 6 * LAYER
    with pytest.raises(DoesNotFit):
        plan(LAYER, memory=MemorySpec(device=10 * ALL))


def test_a_refusal_says_how_much_memory_is_missing() -> None:
    small = 2 * LAYER
    with pytest.raises(ModelError) as refusal:
        plan(small)
    stated = re.search(r"device: 200\.0 MiB is (\d+\.\d) MiB too little", str(refusal.value))
    assert stated is not None
    assert "ring of 2 slots 200.0 MiB" in str(refusal.value)
    assert f"KV of at least {5 * PAGE} tokens 5.0 MiB" in str(refusal.value)
    missing = float(stated[1])
    assert plan(small + int((missing + 0.1) * MIB)).slots == 2
    with pytest.raises(ModelError):
        plan(small + int((missing - 0.1) * MIB))


def test_a_draft_takes_its_memory_from_resident_units() -> None:
    device = 7 * LAYER + KV + ROOM
    without = plan(device)
    large = replace(NO_DRAFT, weight_bytes=2 * LAYER)
    drafted = plan(device + GRAPHS, demand=replace(DEMAND, draft=large))
    assert len(residents(without)) - len(residents(drafted)) == 2
    assert (without.draft_bytes, drafted.draft_bytes) == (0, 2 * LAYER)


@pytest.mark.parametrize("name", ["expanded_bytes", "other_device_bytes"])
def test_other_tensors_on_the_device_are_counted(name: str) -> None:
    device = 7 * LAYER + KV + ROOM
    changes: dict[str, Any] = {name: LAYER}
    assert len(residents(plan(device, demand=replace(DEMAND, **changes)))) == 3


@pytest.mark.parametrize(
    ("changes", "mib"),
    [
        ({"hidden_size": 8193}, 9 * 1024 * 8192 // MIB),  # one byte and two float32 of the norm
        ({"hidden_size": 4097, "item_bytes": 2}, 10 * 1024 * 4096 // MIB),
        ({"head_dim": 1024}, 16 * 1024 * 1024 // MIB + 2 * 1024 * 1024 * 9 // MIB),
        ({"widest": 65537}, 64 * 4 * 65536 // MIB),
        ({"vocab_size": 32769}, (2 + 5 * 4) * 64 * 32768 // MIB + 3 * 8),
        ({"num_heads": 17, "num_kv_heads": 17}, 3 * 8 * 64 * CONTEXT * 16 // MIB),
        ({"num_heads": 640, "num_kv_heads": 640}, 3 * 8 * (MAX_SCORES - 64 * CONTEXT) // MIB),
    ],
)
def test_activations_leave_less_to_the_kv(changes: dict[str, Any], mib: int) -> None:
    asked: dict[str, Any] = {"stream": {"tier": "disk", "slots": 3}}
    device = 3 * LAYER + KV + STAGING_BYTES
    base = plan(device, **asked)
    found = plan(device, demand=replace(DEMAND, **changes), **asked)
    assert base.num_pages - found.num_pages == pytest.approx(mib, abs=2)


def test_compiled_code_is_part_of_the_hosts_memory() -> None:
    spec = ModelSpec("m", TargetSpec("m"))
    memory = Memory(10 * ALL, 1 << 40, True)
    made = [make_plan(spec, DEMAND, replace(memory, code=code)) for code in (0, 200 * MIB)]
    assert made[1].host_bytes - made[0].host_bytes == 200 * MIB


def test_scratch_of_the_trees_is_part_of_the_kv() -> None:
    found = plan(10 * ALL, demand=replace(DEMAND, draft=DraftNeeds(scratch_rows=100)))
    assert found.num_pages == 8 * 18, "1,124 tokens a sequence"


def test_fewer_sequences_need_fewer_pages() -> None:
    found = plan(10 * ALL, max_sequences=2)
    assert (found.max_sequences, found.num_pages) == (2, 32)


@pytest.mark.parametrize(
    ("context", "rows"), [(100, 128), (1000, 1024), (1024, 1024), (200_000, LARGEST_PASS)]
)
def test_a_pass_is_bounded_by_the_context_and_the_largest_pass(context: int, rows: int) -> None:
    found = plan(1 << 50, demand=replace(DEMAND, context_length=context), max_sequences=1)
    assert found.max_rows == rows


def test_a_pass_has_room_for_the_trees_of_all_sequences() -> None:
    bushy = replace(DEMAND, draft=DraftNeeds(scratch_rows=512))
    assert plan(1 << 50, demand=bushy, max_sequences=4).max_rows == 2048
    assert plan(1 << 50, demand=bushy, max_sequences=99).max_rows == LARGEST_PASS


def test_activations_are_counted_for_the_largest_possible_pass() -> None:
    wide = replace(DEMAND, hidden_size=8192, draft=DraftNeeds(scratch_rows=512))
    streamed: dict[str, Any] = {"stream": {"tier": "disk", "slots": 3}}
    few = plan(1 << 40, demand=wide, max_sequences=2, **streamed)
    many = plan(1 << 40, demand=wide, max_sequences=4, **streamed)
    assert (few.max_rows, many.max_rows) == (1024, 2048)
    assert many.activation_bytes - few.activation_bytes == 9 * 1024 * 8192


def test_one_sequence_of_a_short_context_has_a_page_to_grow() -> None:
    found = plan(1 << 50, demand=replace(DEMAND, context_length=64), max_sequences=1)
    assert found.num_pages == 2


def test_a_short_cache_bounds_the_pass() -> None:
    found = plan(2 * LAYER + 5 * MIB + ROOM)
    assert found.max_rows == found.num_pages * PAGE < CONTEXT


def test_a_plan_is_printed_on_one_line() -> None:
    drafted = replace(DEMAND, draft=replace(NO_DRAFT, weight_bytes=LAYER))
    text = str(plan(6 * LAYER + KV + ROOM + GRAPHS, demand=drafted))
    assert text == (
        "2 of 11 units resident (200.0 MiB), 9 streamed from ram, ring of 3 slots (300.0 MiB), "
        "KV of 8192 tokens (128.0 MiB), idle KV of 16384 tokens (256.0 MiB), draft 100.0 MiB"
    )


@given(
    layers=st.lists(st.integers(1, 300), min_size=1, max_size=30),
    head=st.integers(1, 2000),
    draft=st.integers(0, 500),
    kv=st.integers(1, 20_000),
    context=st.integers(1, 40_000),
    scratch=st.integers(0, 600),
    sequences=st.integers(1, 16),
    slots=st.none() | st.integers(2, 6),
    resident=st.none() | st.integers(0, 40),
    device=st.integers(1, 20_000),
)
def test_a_plan_takes_no_more_than_there_is_and_no_less_than_needed(
    layers: list[int],
    head: int,
    draft: int,
    kv: int,
    context: int,
    scratch: int,
    sequences: int,
    slots: int | None,
    resident: int | None,
    device: int,
) -> None:
    demand = replace(
        DEMAND,
        unit_bytes=[size * MIB for size in [*layers, head]],
        layers=whole_layers(len(layers)),
        draft=DraftNeeds(scratch_rows=scratch, weight_bytes=draft * MIB),
        kv_bytes_per_token=kv,
        context_length=context,
    )
    wanted = {"slots": slots, "resident": resident}
    try:
        found = plan(device * MIB, demand=demand, stream=wanted, max_sequences=sequences)
    except ModelError:
        return
    travels = [unit for unit in range(len(layers) + 1) if unit not in residents(found)]
    largest = max((demand.unit_bytes[unit] for unit in travels), default=0)
    assert found.ring_bytes == found.slots * largest
    assert found.device_bytes <= device * MIB
    assert found.host_bytes <= 1 << 40
    assert found.num_pages * PAGE >= min(context, SHORTEST_CONTEXT) + scratch
    assert not travels or found.slots >= 2


@pytest.mark.parametrize(
    "device", [ALL + KV + ROOM, ALL + KV, ALL // 2 + KV, 3 * LAYER + KV + ROOM]
)
@pytest.mark.parametrize("pages", [16, 40, 128])
def test_a_plan_keeps_the_kv_pages_of_the_process_before(device: int, pages: int) -> None:
    assert plan(device, kv_pages=pages).num_pages == pages


def test_kv_pages_that_do_not_fit_any_more_are_fewer() -> None:
    assert plan(3 * LAYER + ROOM + KV // 2, kv_pages=128).num_pages < 128
