"""Device memory that runs out: at any allocation of a pass, for some time, or for one request."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch

from engine.errors import ModelError
from engine.messages import Failed, Generate
from engine.planning import probe
from engine.runtime.engine import Engine
from engine.spec import DraftSpec
from tests.engine.books import check_idle
from tests.engine.grammars import lark
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    Answer,
    Answers,
    checkpoint,
    draft_ahead,
    exact,
    load,
    prompt,
    request,
    run,
)
from tests.engine.small_memory import Fails, SmallMemory, small_memory
from tests.variations import variations

BATCHED = {"specexec": True, "subspec": False}  # whether a tree's tokens are chosen in one call


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallMemory]:
    with small_memory(monkeypatch) as mode:
        yield mode


def open_engine(method: str, layers: int = 3) -> Engine:
    folder = checkpoint("llama", layers=layers)
    source = str(folder) if method == "specexec" else None
    engine = load(
        folder,
        DraftSpec(method, source=source, **SMALL),
        prefix_cache=False,
        context_length=512,
    )
    draft_ahead(engine, steps=1)
    engine._at_once = BATCHED[method]
    return engine


def asked() -> list[Generate]:
    return [
        request("greedy", prompt(70, 1), max_tokens=7),
        request("choices", prompt(9, 2), n=2, temperature=1.0, seed=1, max_tokens=5),
        request("scored", prompt(67, 3), max_tokens=3, logprobs=2, prompt_logprobs=1),
        request("penalized", prompt(5, 4), max_tokens=5, repetition_penalty=1.3),
        request("grammar", prompt(5, 5), max_tokens=8, grammar=lark("start: /[a-z]{3,}/")),
    ]


def serve(
    engine: Engine,
    messages: Sequence[Generate],
    memory: SmallMemory,
    fails: Fails = lambda number, nbytes: False,
) -> tuple[Answers, list[Failed]]:
    """Serve requests together, in memory that fails so; return the answers and the failures."""
    answers: Answers = {}
    failures: list[Failed] = []
    for message in messages:
        engine.add(message)
    memory.start(fails)
    for _ in range(1000):
        if not engine.has_work():
            check_idle(engine)
            return answers, failures
        for event in engine.step():
            if isinstance(event, Failed):
                failures.append(event)
            else:
                answers.setdefault((event.request_id, event.choice), Answer()).take(event)
    raise AssertionError("the requests are never finished")


@pytest.mark.parametrize("method", list(BATCHED))
def test_any_allocation_may_fail(memory: SmallMemory, method: str) -> None:
    """No request fails, and all answers are those of an engine with enough memory."""
    fail_each(memory, open_engine(method), asked(), stride=1201)


@pytest.mark.long
@pytest.mark.parametrize("method", list(BATCHED))
@pytest.mark.parametrize("number", range(5))
def test_every_allocation_may_fail(memory: SmallMemory, method: str, number: int) -> None:
    """The same for all allocations of each kind of request, beside another request."""
    message = asked()[number]
    message = replace(message, params=replace(message.params, max_tokens=3))
    beside = request("beside", prompt(7, 9), max_tokens=2)
    fail_each(memory, open_engine(method, layers=1), [message, beside], stride=1)


def fail_each(
    memory: SmallMemory, engine: Engine, messages: Sequence[Generate], stride: int
) -> None:
    """Serve the requests again and again, while another allocation fails each time."""
    want, failures = serve(engine, messages, memory)
    assert not failures
    total = memory.num_allocations
    assert total > 200
    for failing in range(1, total, stride):

        def fails(number: int, nbytes: int, failing: int = failing) -> bool:
            return number == failing

        found, failures = serve(engine, messages, memory, fails)
        assert exact(found) == exact(want), failing
        assert not failures, failing
        assert memory.num_failed == 1, failing


@pytest.mark.parametrize("method", variations(BATCHED, quick=["subspec"]))
def test_every_allocation_may_fail_for_a_while(memory: SmallMemory, method: str) -> None:
    """Memory that another program takes for some passes makes them smaller; none fails."""
    engine, messages = open_engine(method), asked()
    want, _ = serve(engine, messages, memory)
    total = memory.num_allocations
    for first in range(1, total, total // 5):

        def fails(number: int, nbytes: int, first: int = first) -> bool:
            return number >= first and memory.num_failed < 4

        found, failures = serve(engine, messages, memory, fails)
        assert exact(found) == exact(want), first
        assert not failures, first
        assert memory.num_failed == 4


def test_passes_get_fewer_rows_until_they_fit_and_then_more_again(memory: SmallMemory) -> None:
    engine = load(checkpoint("llama"), SUBSPEC, numerics="fast")
    messages = [request(str(seed), prompt(300, seed), max_tokens=30) for seed in range(3)]
    rows: list[int] = []
    plain = load(checkpoint("llama"), PLAIN, numerics="fast")
    want = {key: answer.ids for key, answer in run(plain, messages).items()}
    memory.start(lambda number, nbytes: nbytes > 60_000 and memory.num_failed < 20)
    for message in messages:
        engine.add(message)
    answers: Answers = {}
    while engine.has_work():
        for event in engine.step():
            assert not isinstance(event, Failed), event
            answers.setdefault((event.request_id, event.choice), Answer()).take(event)
        rows.append(engine._scheduler.allowed_rows)
    assert memory.num_failed > 2
    assert {key: answer.ids for key, answer in answers.items()} == want
    most = engine._loaded.plan.max_rows
    assert min(rows) < most / 4
    assert rows[-1] > min(rows)


def test_only_the_request_that_never_fits_fails(
    memory: SmallMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Attention as on a GPU, in float64: that of a CPU has no large tensors.
    monkeypatch.setattr("engine.model.attention.is_ordered_on", lambda device: False)
    engine = load(checkpoint("llama"), SUBSPEC)
    short = [request(name, prompt(20, seed), max_tokens=6) for seed, name in enumerate("ab")]
    want = exact(run(engine, short))
    # The scores of a tile's rows against the keys of a long prompt are the largest tensors.
    long = request("long", prompt(450, 3))
    found, failures = serve(
        engine, [short[0], long, short[1]], memory, lambda number, nbytes: nbytes > 60_000
    )
    assert exact(found) == want
    (failure,) = failures
    assert (failure.request_id, failure.code) == ("long", "out_of_memory")
    assert "memory.device" in failure.message and "Tried to allocate" in failure.message
    memory.start(lambda number, nbytes: False)
    assert exact(run(engine, short)) == want


def test_one_row_is_tried_again_after_memory_is_freed(memory: SmallMemory) -> None:
    engine = load(checkpoint("llama"), PLAIN, prefix_cache=False)
    messages = [request("a", prompt(20), max_tokens=6)]
    want, _ = serve(engine, messages, memory)
    last = memory.num_allocations - 5  # in a pass of one row
    found, failures = serve(engine, messages, memory, lambda number, nbytes: number == last)
    assert exact(found) == exact(want)
    assert not failures
    assert memory.num_failed == 1


def test_an_audit_that_does_not_fit_is_dropped(memory: SmallMemory) -> None:
    engine = load(checkpoint("llama"), PLAIN, audit=1.0)
    run(engine, [request("a", prompt(20))])
    memory.start(lambda number, nbytes: number == 30)
    assert engine.auditor.run() is None
    assert not engine.auditor.has_pending
    run(engine, [request("b", prompt(20))])
    audited = engine.auditor.run()
    assert audited is not None and audited.mismatches == 0


def test_a_load_that_does_not_fit_is_an_error_with_sizes(memory: SmallMemory) -> None:
    load(checkpoint("llama"), SUBSPEC)  # which fills the cache
    memory.start(lambda number, nbytes: False)
    load(checkpoint("llama"), SUBSPEC)
    failing = int(0.9 * memory.num_allocations) + 1
    memory.start(lambda number, nbytes: number == failing)
    with pytest.raises(
        ModelError,
        match=r"memory\.device: cpu ran out of memory while loading the model \(CUDA out of .*"
        r"bytes\), [\d.]+ MiB are planned \(.* lower memory\.device",
    ):
        load(checkpoint("llama"), SUBSPEC)


# Passes of a model are timed once in all tests, so the first one has a model of its own.
@pytest.mark.parametrize(("measurement", "layers"), [("_time_passes", 4), ("expanding_times", 1)])
def test_a_measurement_that_does_not_fit_is_an_error(
    monkeypatch: pytest.MonkeyPatch, measurement: str, layers: int
) -> None:
    def fail(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(probe, measurement, fail)
    message = r"memory\.device: cpu ran out of memory while measuring its speed .*allocate 2 GiB"
    with pytest.raises(ModelError, match=message):
        load(checkpoint("llama", layers=layers), SUBSPEC)
