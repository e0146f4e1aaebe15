"""Memory that loading takes for a while: only for what the cache lacks, and not beside the ring."""

from dataclasses import replace

import pytest

from engine.drafting.method import DraftNeeds
from engine.planning.cached import Cached, find_cached
from engine.planning.footprint import Demand
from engine.planning.making import CODES, COPIES, coding_bytes, made_bytes, must_make
from engine.planning.memory import Memory
from engine.planning.plan import Plan, make_plan
from engine.planning.refusal import DoesNotFit
from engine.spec import ModelSpec, TargetSpec
from engine.weights.layout import whole_layers

MIB = 1 << 20
LAYERS, LAYER, COPY = 10, 100 * MIB, 25 * MIB
MAKING, READING = 800 * MIB, 50 * MIB
ALL = frozenset(range(LAYERS + 1))
NEEDS = DraftNeeds(
    scratch_rows=0,
    weight_bytes=(LAYERS + 1) * COPY,
    substitute_bytes=[COPY] * (LAYERS + 1),
    making_bytes=MAKING,
    reading_bytes=READING,
    cache_entries=("importance", "copies"),
)
DEMAND = Demand(
    unit_bytes=[LAYER] * (LAYERS + 1),
    layers=whole_layers(LAYERS),
    expanded_bytes=0,
    other_device_bytes=0,
    hidden_size=1,
    widest=1,
    num_heads=1,
    vocab_size=1,
    item_bytes=1,
    kv_bytes_per_token=1,
    draft=NEEDS,
    context_length=64,
)
CODED = replace(DEMAND, coded_bytes=[LAYER // 2] * (LAYERS + 1))


def plan(demand: Demand, free: int) -> Plan:
    memory = Memory(int(0.8 * free), int(0.9 * free), has_own_memory=False, loading=free)
    return make_plan(ModelSpec("m", TargetSpec("m")), demand, memory)


@pytest.mark.parametrize(
    ("cached", "made", "nbytes"),
    [
        (Cached(), (COPIES, CODES), MAKING),
        (Cached(copies=True), (CODES,), coding_bytes(CODED)),
        (Cached(codes=True), (COPIES,), MAKING),
        (Cached(copies=True, codes=True), (), READING),
    ],
)
def test_only_what_the_cache_lacks_is_made(
    cached: Cached, made: tuple[str, ...], nbytes: int
) -> None:
    demand = replace(CODED, cached=cached)
    assert must_make(demand, set()) == made
    assert made_bytes(demand, set()) == nbytes
    assert made_bytes(demand, ALL) == 0  # the draft is the target itself, and nothing travels


def test_copies_in_the_cache_leave_more_memory_to_the_plan() -> None:
    free = 1300 * MIB
    found = replace(DEMAND, cached=Cached(copies=True))
    first, later = plan(DEMAND, free), plan(found, free)
    assert first.making_bytes > 0 == later.making_bytes
    assert first.device_bytes + first.making_bytes <= free
    assert later.tiers.count("resident") > first.tiers.count("resident")


def test_a_plan_that_is_refused_for_what_must_be_made_says_what_to_do() -> None:
    free = 1000 * MIB
    assert plan(replace(DEMAND, cached=Cached(copies=True)), free).num_pages
    with pytest.raises(DoesNotFit) as caught:
        plan(DEMAND, free)
    said = str(caught.value)
    assert "made or read while loading" in said
    assert "does not have the 4-bit copies" in said and "once with more memory" in said
    with pytest.raises(DoesNotFit) as caught:
        plan(replace(DEMAND, cached=Cached(copies=True)), free // 4)
    assert "once with more memory" not in str(caught.value)


def test_ring_and_activations_take_no_memory_before_all_is_made() -> None:
    found = plan(DEMAND, 1300 * MIB)
    assert found.making_bytes == MAKING - found.ring_bytes - found.activation_bytes


def test_units_in_ram_are_loaded_after_all_is_made() -> None:
    spec, card = ModelSpec("m", TargetSpec("m")), Memory(600 * MIB, 2000 * MIB, has_own_memory=True)
    found = make_plan(spec, DEMAND, card)
    assert "ram" in found.tiers
    assert found.making_bytes == max(MAKING - found.ram_unit_bytes, 0)
    assert found.host_bytes <= card.ram


def test_coded_weights_in_the_cache_are_those_of_the_copies_in_it() -> None:
    entries = {
        "importance": "i",
        "copies": "c",
        "coded 1, copies c": "x",
        "coded 1, no copies": "y",
    }

    def found(*, without: str = "", by_copies: bool = True, needs: DraftNeeds = NEEDS) -> Cached:
        left = {name: digest for name, digest in entries.items() if name != without}
        return find_cached(left.get, needs, is_coded_by_copies=by_copies)

    assert found() == Cached(copies=True, codes=True)
    assert found(without="importance") == Cached(copies=False, codes=True)
    assert found(without="copies") == Cached(copies=False, codes=False)
    assert found(without="coded 1, copies c") == Cached(copies=True, codes=False)
    lookup = DraftNeeds(scratch_rows=1)
    assert found(by_copies=False, needs=lookup) == Cached(copies=True, codes=True)
    entries["copies"] = "others"
    assert found() == Cached(copies=True, codes=False)
