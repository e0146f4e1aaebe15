"""Tests of a chat's second turn: it computes its new tokens and the answer's last one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.messages import Generate
from engine.runtime.engine import Engine
from engine.spec import DraftSpec
from tests.engine.books import check_books, check_idle
from tests.engine.models import (
    PLAIN,
    SMALL,
    SUBSPEC,
    Answer,
    alone,
    checkpoint,
    draft_model,
    exact,
    load,
    prompt,
    request,
    run,
)
from tests.engine.traffic import pages
from tests.variations import variations

NEW = 17  # tokens of the second question
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 4, "top_p": 0.95, "logprobs": 1}


def drafts(family: str = "llama") -> dict[str, DraftSpec]:
    folder = str(checkpoint(family))
    return {
        "none": PLAIN,
        "ngram": DraftSpec("ngram", tuned=False),
        "subspec": SUBSPEC,
        "specexec": DraftSpec("specexec", source=folder, **SMALL),
    }


def next_turn(name: str, asked: Generate, answer: Answer, **params: Any) -> Generate:
    """Return the next request of a client: the conversation so far and a question."""
    return request(name, [*asked.prompt, *answer.ids, *prompt(NEW, 77)], **params)


def computed(answer: Answer) -> int:
    assert answer.stats is not None
    return answer.stats.prompt_tokens - answer.stats.cached_tokens


def cold(family: str, asked: list[Generate]) -> dict[Any, Any]:
    """Return the answers of an engine without prefix cache and draft."""
    return exact(alone(load(checkpoint(family), PLAIN, prefix_cache=False), asked))


@pytest.mark.parametrize(
    "draft", variations(["none", "ngram", "subspec", "specexec"], quick=["none", "subspec"])
)
@pytest.mark.parametrize(
    ("length", "emitted"), variations([(150, 52), (20, 9), (64, 1)], quick=[(150, 52)])
)
def test_a_second_turn_computes_its_new_tokens_and_one_more(
    length: int, emitted: int, draft: str
) -> None:
    engine = load(checkpoint("llama"), drafts()[draft])
    turns = [request("1", prompt(length), max_tokens=emitted)]
    got = run(engine, turns)
    for name, before in (("2", "1"), ("3", "2")):
        turns.append(next_turn(name, turns[-1], got[(before, 0)], **SAMPLED))
        rows = rows_of_passes(engine._decoder)
        got |= run(engine, turns[-1:])
        assert rows[0] == computed(got[(name, 0)]) == NEW + 1
    assert exact(got) == cold("llama", turns)
    check_idle(engine)


def rows_of_passes(decoder: Any) -> list[int]:
    """Return a list to which the number of rows of each later pass of a decoder is appended."""
    rows: list[int] = []
    forward = type(decoder).forward

    def counted(tokens: list[int], *arguments: Any) -> Tensor:
        rows.append(len(tokens))
        hidden: Tensor = forward(decoder, tokens, *arguments)
        return hidden

    decoder.forward = counted
    return rows


@pytest.mark.parametrize(
    ("family", "dtype"),
    variations(
        [
            ("mistral_window", torch.float32),
            ("gemma2", torch.bfloat16),
            ("gpt_oss", torch.float32),
            ("qwen3_moe", torch.bfloat16),
        ],
        quick=[("mistral_window", torch.float32), ("qwen3_moe", torch.bfloat16)],
    ),
    ids=str,
)
def test_a_second_turn_gets_the_answer_of_an_engine_without_cache(
    family: str, dtype: torch.dtype
) -> None:
    folder = checkpoint(family, dtype)
    engine = load(folder, DraftSpec("specexec", source=str(folder), **SMALL))
    first = request("1", prompt(75), max_tokens=30)
    second = next_turn("2", first, run(engine, [first])[("1", 0)], **SAMPLED)
    got = run(engine, [second])
    assert computed(got[("2", 0)]) == NEW + 1
    plain = load(folder, PLAIN, prefix_cache=False)
    assert exact(got) == exact(run(plain, [second]))


def test_stored_rows_with_other_rope_frequencies_are_not_reused() -> None:
    """The frequencies change at 32 tokens: the first turn is shorter, the second longer."""
    engine = load(checkpoint("phi3_longrope"), drafts("phi3_longrope")["specexec"])
    first = request("1", prompt(20), max_tokens=8)
    answer = run(engine, [first])[("1", 0)]
    within = request("2", [*first.prompt, *answer.ids, 5, 6], max_tokens=2)
    beyond = [next_turn("3", first, answer, **SAMPLED)]
    got = run(engine, [within])
    assert computed(got[("2", 0)]) == 3
    got |= run(engine, beyond)
    assert computed(got[("3", 0)]) == 28 + NEW
    beyond.append(next_turn("4", beyond[0], got[("3", 0)]))
    got |= run(engine, beyond[1:])
    assert computed(got[("4", 0)]) == NEW + 1
    assert exact(got) == cold("phi3_longrope", [within, *beyond])


@pytest.mark.parametrize("draft", variations(["none", "subspec", "specexec"], quick=["subspec"]))
def test_a_second_turn_can_continue_any_choice(draft: str) -> None:
    engine = load(checkpoint("llama"), drafts()[draft])
    first = request("1", prompt(70), n=2, max_tokens=20, temperature=1.5, seed=3)
    answers = run(engine, [first])
    assert answers[("1", 0)].ids != answers[("1", 1)].ids
    seconds = [next_turn(f"2{i}", first, answers[("1", i)], n=2, **SAMPLED) for i in range(2)]
    got = run(engine, seconds)
    assert [computed(answer) for answer in got.values()] == [NEW + 1] * 4
    assert exact(got) == cold("llama", seconds)


def test_the_draft_model_runs_no_more_rows_than_the_target() -> None:
    engine = load(checkpoint("llama"), drafts()["specexec"])
    rows = rows_of_passes(draft_model(engine).decoder)
    first = request("1", prompt(150), max_tokens=52)
    second = next_turn("2", first, run(engine, [first])[("1", 0)])
    assert max(rows) >= 150
    rows.clear()
    run(engine, [second])
    assert NEW < max(rows) <= NEW + 1 + SMALL["depth"], "it had not run its last accepted rows"


@pytest.mark.parametrize("draft", ["none", "subspec", "specexec"])
def test_a_paused_sequence_continues_with_the_next_token(draft: str) -> None:
    engine = load(checkpoint("llama"), drafts()[draft])
    asked = request("r", prompt(100), max_tokens=30)
    want = cold("llama", [asked])
    engine.add(asked)
    got = Answer()
    while engine.has_work():
        if engine._scheduler.running and len(got.ids) % 3 == 0:
            engine._scheduler._pause(engine._scheduler.running[0])
            check_books(engine)
            with torch.inference_mode():
                (turn,) = engine._scheduler.schedule()
            assert turn.sequence.num_pending == 1
        for event in engine.step():
            got.ids += getattr(event, "ids", ())
    assert tuple(got.ids) == tuple(want[("r", 0)][0])


@pytest.mark.parametrize("draft", variations(["none", "subspec", "specexec"], quick=["subspec"]))
def test_a_second_turn_finds_pages_that_have_moved_to_host_memory(draft: str) -> None:
    with pages(8, host=20):
        engine = load(checkpoint("llama"), drafts()[draft])
    first = request("1", prompt(150), max_tokens=52)
    second = next_turn("2", first, run(engine, [first])[("1", 0)], **SAMPLED)
    run(engine, [request("other", prompt(8 * PAGE - 40, 5), max_tokens=10)])
    cache = engine._cache
    beginning = tuple(second.prompt[:PAGE])
    assert cache._index._pages[0, beginning] >= cache.num_pages, "the page is in host memory"
    got = run(engine, [second])
    assert computed(got[("2", 0)]) == NEW + 1
    assert exact(got) == cold("llama", [second])
    check_books(engine)


def test_prompts_that_differ_inside_a_page_share_the_rows_before() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    stem = prompt(90)
    asked = [request(str(i), [*stem, *prompt(30 + i, i)], **SAMPLED) for i in range(4)]
    got = alone(engine, asked)
    assert [computed(a) for a in got.values()] == [120, *(30 + i for i in range(1, 4))]
    assert exact(got) == cold("llama", asked)


def test_pages_of_the_audit_are_not_stored() -> None:
    engine = load(checkpoint("llama"), PLAIN, audit=1.0)
    run(engine, [request("r", prompt(70), max_tokens=20)])
    before = dict(engine._cache._index._keys)
    audited = engine.auditor.run()
    assert audited is not None and audited.positions == 20 and audited.mismatches == 0
    assert engine._cache._index._keys == before


@contextmanager
def arriving(engine: Engine, late: PageTable) -> Iterator[None]:
    """Enter a block in which the pages of one table are still being copied from the host."""
    cache: Any = engine._cache
    cache.is_ready = lambda table: table is not late
    try:
        yield
    finally:
        del cache.is_ready


def test_a_sequence_waits_for_its_pages_while_others_run() -> None:
    engine = load(checkpoint("llama"), PLAIN)
    for name in "ab":
        engine.add(request(name, prompt(70, ord(name)), max_tokens=9))
    engine.step()
    scheduler = engine._scheduler
    first, second = scheduler.running
    with torch.inference_mode():
        with arriving(engine, first.pages):
            assert [turn.sequence for turn in scheduler.schedule()] == [second]
            scheduler._pause(second)
            scheduler.max_sequences = 1
            assert [turn.sequence for turn in scheduler.schedule()] == [first], (
                "no other sequence runs"
            )
        scheduler.max_sequences = 2
        assert [turn.sequence for turn in scheduler.schedule()] == [first, second]
