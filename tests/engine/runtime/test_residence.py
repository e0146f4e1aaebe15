"""Weights that move while requests run: no answer changes, and no request fails."""

import gc
import logging
import random
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from engine.errors import ModelError
from engine.messages import Failed, Generate
from engine.moves import LimitMemory
from engine.planning import choice, link_probe
from engine.planning.room import Available
from engine.runtime.engine import Engine
from engine.runtime.residence import FAILED_SECONDS, RETURN_SECONDS
from engine.spec import DraftSpec, MemorySpec, StreamSpec
from tests.engine.books import check_books, check_idle
from tests.engine.hybrids import HYBRIDS
from tests.engine.limits import PLENTY, limit, with_plenty
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    Answer,
    Answers,
    checkpoint,
    draft_ahead,
    draft_model,
    exact,
    load,
    prompt,
    request,
    run,
)

ASKED = [
    request("greedy", prompt(70, 1), max_tokens=20, logprobs=2),
    request("seeded", prompt(20, 2), max_tokens=20, temperature=1.0, seed=3, logprobs=0),
    request("choices", prompt(33, 3), n=2, max_tokens=12, temperature=0.8, seed=4),
]
RESIDENT = StreamSpec(resident=3, slots=2)


def num_layers(family: str) -> int:
    """Return the number of layers of a family's checkpoints here; those of hybrids are fixed."""
    return 3 if family in HYBRIDS else 5


def served(
    draft: DraftSpec,
    family: str = "llama",
    dtype: torch.dtype = torch.float32,
    stream: StreamSpec = RESIDENT,
    **changes: Any,
) -> Engine:
    """Return an engine with a few layers, some of which may leave the device."""
    folder = checkpoint(family, dtype, layers=num_layers(family))
    if draft.method == "specexec":
        draft = DraftSpec("specexec", source=str(folder), **SMALL)
    return with_plenty(load(folder, draft, stream=stream, **changes))


def run_moving(engine: Engine, requests: Sequence[Generate], seed: int = 0) -> tuple[Answers, int]:
    """Serve requests while limits change; return the answers and the number of moves."""
    chance = random.Random(seed)
    for message in requests:
        engine.add(message)
    answers: Answers = {}
    moves = 0
    while engine.has_work():
        moves += limit(engine, chance.choice([0, 0.2, 0.5, 0.8, 1]), chance.choice([0, 0.5, 1]))
        for event in engine.step():
            assert not isinstance(event, Failed), event
            answers.setdefault((event.request_id, event.choice), Answer()).take(event)
        check_books(engine)
    check_idle(engine)
    return answers, moves


def resident_layers(engine: Engine) -> int:
    return engine._loaded.stream.tiers[:-1].count("resident")


@pytest.fixture(scope="module")
def want() -> dict[tuple[str, int], tuple[object, ...]]:
    engine = load(checkpoint("llama", layers=5), PLAIN)
    found = exact(run(engine, ASKED))
    engine.close()
    return found


@pytest.mark.parametrize(
    ("method", "tier"),
    [("subspec", None), ("subspec", "ram"), ("specexec", "ram"), ("ngram", None)],
)
def test_no_answer_changes_while_weights_move(
    method: str, tier: Any, want: dict[tuple[str, int], tuple[object, ...]]
) -> None:
    engine = served(DraftSpec(method, **SMALL), stream=StreamSpec(tier, resident=3, slots=2))
    draft_ahead(engine, steps=1)
    found, moves = run_moving(engine, ASKED)
    assert exact(found) == want
    assert moves > 3
    drafted = {origin.source for answer in found.values() for origin in answer.origins}
    assert method in drafted or method == "ngram", "the draft works after moves"


@pytest.mark.parametrize("draft", [SUBSPEC, PLAIN], ids=["with copies", "without"])
def test_no_answer_changes_where_weights_travel_coded(
    draft: DraftSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_probe, "LEAST_CODED_BYTES", 0)
    monkeypatch.setattr(choice, "LEAST_GAIN", 0.0)
    plain = load(checkpoint("llama", torch.bfloat16, layers=5), PLAIN)
    stream = StreamSpec("ram", resident=3, slots=2)
    engine = served(draft, dtype=torch.bfloat16, stream=stream)
    assert "lossless code" in engine.info.plan
    found, moves = run_moving(engine, ASKED)
    assert exact(found) == exact(run(plain, ASKED))
    assert moves > 3


@pytest.mark.long
@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_next", "qwen3_moe", "gemma2"])
@pytest.mark.parametrize("draft", [SUBSPEC, DraftSpec("ngram")], ids=["subspec", "ngram"])
def test_no_answer_of_other_families_changes(family: str, draft: DraftSpec) -> None:
    plain = load(checkpoint(family, layers=num_layers(family)), PLAIN)
    engine = served(draft, family)
    found, moves = run_moving(engine, ASKED)
    assert exact(found) == exact(run(plain, ASKED))
    assert moves > 3


def test_a_limit_lowered_by_a_fifth_and_raised_again(
    want: dict[tuple[str, int], tuple[object, ...]],
) -> None:
    engine = served(SUBSPEC)
    full = engine._loaded.plan.device_bytes
    for message in ASKED:
        engine.add(message)
    answers: Answers = {}
    placed = []
    for number in range(1000):
        if not engine.has_work():
            break
        if number in (2, 5):
            engine.residence.limit(LimitMemory(device=full * 4 // 5 if number == 2 else None))
        engine.residence.run()
        placed.append(resident_layers(engine))
        for event in engine.step():
            assert not isinstance(event, Failed), event
            answers.setdefault((event.request_id, event.choice), Answer()).take(event)
    assert exact(answers) == want
    assert placed[0] == placed[-1] == 3 > min(placed)


def test_a_draft_of_resident_layers_alone_rests_while_a_layer_is_away(
    want: dict[tuple[str, int], tuple[object, ...]],
) -> None:
    engine = served(SUBSPEC, stream=StreamSpec())
    assert set(engine._loaded.stream.tiers) == {"resident"}
    assert limit(engine, 0.5)
    assert not draft_model(engine).is_usable
    assert exact(run(engine, ASKED)) == want
    assert limit(engine)
    assert set(engine._loaded.stream.tiers) == {"resident"}
    assert draft_model(engine).is_usable
    found = run(engine, ASKED)
    assert exact(found) == want
    assert any(own.source == "subspec" for answer in found.values() for own in answer.origins)


@pytest.mark.parametrize("method", ["subspec", "ngram"])
def test_the_memory_of_layers_that_leave_is_freed(method: str) -> None:
    engine = served(DraftSpec(method, **SMALL))
    run(engine, ASKED)
    store = engine._loaded.stream._store
    memory = {unit: weakref.ref(own) for unit, own in store.resident.items()}
    assert len(memory) == 3
    assert limit(engine, 0)
    gc.collect()
    assert [unit for unit, own in memory.items() if own() is not None] == [*store.resident] == []


def test_units_come_back_when_there_has_been_room_for_some_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    engine = served(DraftSpec("ngram"))
    residence = engine.residence
    now, ram = [0.0], [PLENTY]
    residence._clock = lambda: now[0]
    residence._read = lambda plan: Available(None, ram[0])
    seen = []
    for second in range(200):
        now[0] = float(second)
        ram[0] = 0 if second == 20 or 60 <= second < 70 else PLENTY
        residence.run()
        if (report := residence.take_report()) is not None:
            seen.append((second, report.reason, dict(report.tiers).get("resident", 0)))
    back = int(RETURN_SECONDS)
    assert seen == [
        (20, "ram", 0),
        (21 + back, "freed", 3),
        (60, "ram", 0),
        (70 + back, "freed", 3),
    ]
    assert "Weights have moved" in caplog.text and "because RAM is short" in caplog.text
    assert caplog.text.count("Memory is short by") == 2


def test_weights_that_cannot_be_read_are_tried_again_later(
    want: dict[tuple[str, int], tuple[object, ...]],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = served(DraftSpec("ngram"))
    residence, stream = engine.residence, engine._loaded.stream
    now = [0.0]
    residence._clock = lambda: now[0]
    assert limit(engine, 0)

    def fail(*_: object) -> None:
        raise ModelError("model.layers.1: its weights could not be read")

    with monkeypatch.context() as patch:
        patch.setattr(stream._store, "load", fail)
        residence.limit(LimitMemory())
        residence.run()
    assert "read from disk in each pass: model.layers.1" in caplog.text
    assert exact(run(engine, ASKED)) == want
    for now[0] in (1.0, FAILED_SECONDS - 1):
        residence.run()
        assert resident_layers(engine) == 0
    now[0] = FAILED_SECONDS + RETURN_SECONDS
    residence.run()
    assert resident_layers(engine) == 3
    assert exact(run(engine, ASKED)) == want


def test_nothing_moves_by_itself_where_the_models_file_says_so() -> None:
    engine = served(DraftSpec("ngram"), memory=MemorySpec(device=256 << 20, replan=False))
    residence = engine.residence
    residence._read = lambda plan: Available(None, 0)
    residence.run()
    assert resident_layers(engine) == 3
    assert residence.seconds_until_due() is None
    residence._read = lambda plan: Available(None, PLENTY)
    assert limit(engine, 0), "limits that are set hold all the same"
    assert resident_layers(engine) == 0
