"""KV pages whose memory is given back while requests run: no text changes, nothing is refused."""

import logging
from collections.abc import Sequence

import pytest

from engine.kv.page_pool import PAGE
from engine.messages import Failed, Generate
from engine.planning.plan import SHORTEST_CONTEXT
from engine.runtime.engine import Engine
from engine.spec import DraftSpec, MemorySpec
from tests.engine.books import check_books, check_idle
from tests.engine.limits import limit, with_plenty
from tests.engine.models import (
    PLAIN,
    SUBSPEC,
    Answer,
    Answers,
    checkpoint,
    exact,
    load,
    prompt,
    request,
    run,
)

LEAST = SHORTEST_CONTEXT // PAGE
ASKED = [
    request("a", prompt(100, 1), max_tokens=40, logprobs=1),
    request("b", prompt(190, 2), max_tokens=40, temperature=1.0, seed=3),
    request("c", prompt(70, 3), n=2, max_tokens=30, temperature=0.8, seed=4),
]


def engine(draft: DraftSpec = PLAIN, kv_disk: int = 0) -> Engine:
    memory = MemorySpec(device=256 << 20, kv_disk=kv_disk)
    return with_plenty(load(checkpoint("llama", layers=2), draft, memory=memory))


def num_pages(served: Engine) -> int:
    """Return the number of pages that have memory."""
    return served._cache.num_pages - served._cache.num_withdrawn


def run_checked(served: Engine, requests: Sequence[Generate], after: int = 0) -> Answers:
    """Serve requests, from pass `after` on within the least memory, and look at it each time."""
    for message in requests:
        served.add(message)
    answers: Answers = {}
    for number in range(10_000):
        if not served.has_work():
            break
        if number == after:
            limit(served, 0)
        served.residence._due = 0.0
        served.residence.run()
        check_books(served)
        for event in served.step():
            assert not isinstance(event, Failed), event
            answers.setdefault((event.request_id, event.choice), Answer()).take(event)
    check_idle(served)
    return answers


@pytest.mark.parametrize("draft", [PLAIN, SUBSPEC], ids=["plain", "subspec"])
def test_sequences_pause_and_none_fails_when_pages_are_given_back(
    draft: DraftSpec, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    want = exact(run(engine(), ASKED))
    served = engine(draft)
    full = num_pages(served)
    assert full > 4 * LEAST
    assert exact(run_checked(served, ASKED, after=3)) == want
    assert "is paused: no KV pages are free" in caplog.text
    assert limit(served) and num_pages(served) == full
    assert exact(run(served, ASKED)) == want


def test_the_last_sequence_takes_back_the_pages_that_it_needs() -> None:
    long = [request("long", prompt(6 * PAGE, 5), max_tokens=60), ASKED[0]]
    want = exact(run(engine(), long))
    served = engine()
    assert limit(served, 0) and num_pages(served) == LEAST
    assert exact(run_checked(served, long)) == want
    served.residence._due = 0.0
    served.residence.run()
    assert num_pages(served) == LEAST


def test_idle_pages_go_to_the_disk_before_their_memory_is_given_back() -> None:
    asked = [request("first", prompt(6 * PAGE + 5, 6), max_tokens=8)]
    served = engine(kv_disk=1 << 30)
    want = run(served, asked)
    assert limit(served, 0) and num_pages(served) == LEAST
    assert served._cache.disk is not None
    served._cache.disk.flush(60.0)
    assert limit(served)
    found = run(served, [request("again", asked[0].prompt, max_tokens=8)])
    assert found["again", 0].ids == want["first", 0].ids
    stats = found["again", 0].stats
    assert stats is not None and stats.cached_tokens >= 6 * PAGE
