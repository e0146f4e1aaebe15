"""Tests of a single sequence: its status, and what it provides of its request."""

import torch

from engine.kv.cache import KVCache
from engine.kv.page_pool import PagePool
from engine.messages import Speculation
from engine.sequences.sequence import Status, TokenSequence
from engine.streaming.cpu_link import CpuDevice
from tests.engine.sequence_makers import LIMITS, choice_of, make_request, make_sequence


def test_a_sequence_waits_runs_pauses_runs_again_and_finishes() -> None:
    pool = PagePool(
        num_layers=1,
        num_pages=8,
        num_kv_heads=1,
        head_dim=4,
        dtype=torch.float32,
        device=CpuDevice(),
    )
    cache = KVCache(pool)
    sequence = make_sequence([3, 4, 5])
    seen: list[tuple[Status, bool]] = []

    def look() -> None:
        seen.append((sequence.status, sequence.table is not None))

    look()
    sequence.run(cache.open(sequence.tokens))
    look()
    cache.reserve(sequence.pages, 3)
    cache.append_rows(sequence.pages, range(3))
    cache.close(sequence.pages, sequence.tokens)
    sequence.pause()
    look()
    sequence.run(cache.open(sequence.tokens))
    look()
    assert (sequence.pages.length, sequence.num_cached) == (2, 0), (
        "num_cached is that of its first admission"
    )
    sequence.mark_finished()
    look()
    assert seen == [
        (Status.WAITING, False),
        (Status.RUNNING, True),
        (Status.PAUSED, False),
        (Status.RUNNING, True),
        (Status.FINISHED, False),
    ]


def test_a_sequence_provides_the_parameters_of_its_request() -> None:
    speculation = Speculation("ngram", 4)
    request = make_request(
        [3, 4], name="r", key="k", n=2, speculation=speculation, prediction=[5], seed=9
    )
    sequence = choice_of(request, 1)
    assert (sequence.request_id, sequence.key, sequence.params.seed) == ("r", "k", 9)
    assert (sequence.speculation, sequence.prediction) == (speculation, (5,))
    assert sequence.original_length == LIMITS.original_length
    assert not sequence.is_cancelled
    request.cancelled.set()
    assert sequence.is_cancelled


def test_a_fork_has_the_cached_tokens_and_passes_of_its_first_choice() -> None:
    request = make_request([3, 4, 5], n=2)
    first = choice_of(request)
    first.count_pass()
    rules = choice_of(request, 1).rules
    fork = TokenSequence(request, 1, rules, num_cached=2, passes=first.passes)
    assert (fork.stats().cached_tokens, fork.stats().passes) == (2, 1)


def test_a_request_ends_with_its_last_choice() -> None:
    request = make_request([3], n=3)
    assert [request.end_choice() for _ in range(3)] == [False, False, True]
