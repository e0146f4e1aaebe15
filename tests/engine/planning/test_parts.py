"""Plans and forecasts of models whose layers are streamed in parts."""

import json
from dataclasses import replace
from typing import Any

import pytest

from engine.drafting.method import facts_of
from engine.planning.assumed import Machine, complete_times
from engine.planning.blueprint import Blueprint
from engine.planning.choice import Scheme, make_scheme
from engine.planning.forecast import exposed_seconds, make_forecast
from engine.planning.memory import Memory
from engine.planning.plan import Plan, make_plan
from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec
from engine.timing import StepTimes
from engine.weights.layout import LayerUnits
from tests.engine.planning.test_plan import DEMAND, KV, LAYER, MIB, ROOM, plan

LAYERS = 10
# Parts of 10, 30, 30 and 30 MiB.
UNITS = [10 * MIB, 30 * MIB, 30 * MIB, 30 * MIB] * LAYERS + [20 * MIB]
PARTS = replace(
    DEMAND,
    unit_bytes=UNITS,
    layers=[LayerUnits(4 * index, num_parts=4) for index in range(LAYERS)],
)
GIB = 1 << 30
SEVEN_B = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "dtype": "bfloat16",
}


def residents(found: Plan) -> list[int]:
    return [unit for unit, tier in enumerate(found.tiers) if tier == "resident"]


@pytest.mark.parametrize(
    ("slots", "ring", "total"), [(2, 110, 5), (3, 140, 6), (4, 170, 7), (5, 200, 8), (6, 210, 9)]
)
def test_the_ring_holds_a_layer_and_the_parts_ahead(slots: int, ring: int, total: int) -> None:
    found = plan(40 * LAYER, demand=PARTS, stream={"tier": "ram", "slots": slots})
    assert (found.slots, found.ring_slots, found.ring_bytes) == (slots, total, ring * MIB)
    assert residents(found) == [40], "a head in the slots of first parts would make them larger"


def test_a_layer_in_parts_is_resident_as_a_whole_or_not_at_all() -> None:
    found = plan(3 * LAYER + KV + ROOM, demand=PARTS)
    *parts, head = residents(found)
    layers = {unit // 4 for unit in parts}
    assert 0 < len(layers) < LAYERS and head == 40
    assert parts == [unit for unit in range(40) if unit // 4 in layers]


def test_more_layers_are_resident_than_with_a_ring_of_whole_layers() -> None:
    device = 8 * LAYER + KV + ROOM
    whole, parts = plan(device), plan(device, demand=PARTS)
    assert whole.ring_bytes == 3 * LAYER and parts.ring_bytes < 2 * LAYER
    assert len(residents(parts)) // 4 == len(residents(whole)) + 1
    assert parts.device_bytes <= device


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    folder = tmp_path_factory.mktemp("seven-b")
    (folder / "config.json").write_text(json.dumps(SEVEN_B))
    return Blueprint(ModelSpec("m", TargetSpec(str(folder)), draft=DraftSpec("none")), folder)


def scheme_of(seven_b: Blueprint, slots: int | None) -> Scheme:
    """Return the scheme on a card of 8 GB, of which CUDA takes a part, at 25 GB/s."""
    spec = replace(seven_b.spec, stream=StreamSpec(slots=slots))
    memory = Memory(7331 * MIB, 24 * GIB, has_own_memory=True, stream_workspace=32 * MIB)
    return make_scheme("none", spec, seven_b, Machine(memory, 25.0, 3.0), users=1)


def test_two_more_layers_of_7b_are_resident_on_8_gib(seven_b: Blueprint) -> None:
    """With a ring of three whole layers there were 7."""
    scheme = scheme_of(seven_b, None)
    assert len(residents(scheme.plan)) == 9 * 4 + 1
    assert scheme.plan.ring_bytes < 1.75 * sum(scheme.demand.unit_bytes[:4])


def of_plan(slots: int, tile_seconds: float, rows: int, **changes: Any) -> tuple[float, float]:
    """Return the exposed seconds of a plan, and those of a pass before the first token."""
    demand = replace(PARTS, context_length=rows, **changes)
    spec = ModelSpec("m", TargetSpec("m"), stream=StreamSpec(tier="ram", slots=slots))
    memory = Memory(40 * LAYER, 1 << 40, has_own_memory=True)
    times = StepTimes()
    for tiles in (1, 16):
        times.observe(64 * tiles, tile_seconds * tiles)
    machine = Machine(memory, ram_gbps=MIB / 1e6, disk_gbps=1.0, passes=times)  # 1 ms for a MiB
    found = make_plan(spec, demand, memory)
    facts = facts_of("none")
    forecast = make_forecast(found, demand, facts, complete_times(machine, demand, found))
    return exposed_seconds(found, demand, machine), forecast.first_token_seconds


# The link takes 1 s for all layers.
@pytest.mark.parametrize(
    ("slots", "tile_seconds", "exposed", "first"),
    [
        (2, 0.1, 0.9, 1.6 + 0.8),  # beside its own first tile, a layer's transfer is exposed
        (3, 0.1, 0.6, 1.6 + 0.5),
        (5, 0.1, 0.0, 1.6),
        (3, 0.01, 0.6, 1.0),  # the link takes longer in any case
        (3, 0.04, 0.6, 0.64 + 0.56),
    ],
)
def test_transfers_that_computing_cannot_hide_delay_long_prompts(
    slots: int, tile_seconds: float, exposed: float, first: float
) -> None:
    found, seconds = of_plan(slots, tile_seconds, 1024)
    assert found == pytest.approx(exposed, rel=1e-3)
    assert seconds == pytest.approx(first, abs=0.01)


def test_a_single_tile_runs_while_its_layer_arrives() -> None:
    assert of_plan(3, 0.9, 64)[1] == pytest.approx(1.0, abs=0.02)


def test_the_ring_is_as_large_as_makes_requests_fast(seven_b: Blueprint) -> None:
    """A larger ring leaves fewer layers resident and hides more transfers behind long prompts."""
    chosen = scheme_of(seven_b, None)
    others = [scheme_of(seven_b, slots) for slots in (3, 4, 5)]
    assert {own.plan.slots: own.forecast for own in others}[chosen.plan.slots] == chosen.forecast
    usual = others[0].plan.num_pages
    fast = min(o.forecast.request_seconds for o in others if o.plan.num_pages >= usual)
    assert chosen.forecast.request_seconds == fast
    assert others[2].forecast.first_token_seconds < others[0].forecast.first_token_seconds
    assert others[2].forecast.tokens_per_second < others[0].forecast.tokens_per_second
    assert scheme_of(seven_b, 2).plan.slots == 2, "as asked"
