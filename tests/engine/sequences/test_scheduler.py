"""Tests of the scheduler over a tiny KV cache, without a model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, settings, strategies as st

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.sequences.scheduler import Scheduler, Turn
from engine.sequences.sequence import TokenSequence
from engine.spec import TILE
from engine.streaming.cpu_link import CpuDevice
from engine.timing import PassTimes
from tests.engine.models import prompt
from tests.engine.sequence_makers import LIMITS, choice_of, make_request, make_sequence

NEXT = 7  # the token that every pass emits


class Harness:
    """A scheduler with its KV cache, and a substitute for the passes of a model."""

    def __init__(self, pages: int = 64, **bounds: Any) -> None:
        self.cache = KVCache(
            PagePool(
                num_layers=1,
                num_pages=pages,
                num_kv_heads=1,
                head_dim=4,
                dtype=torch.float32,
                device=CpuDevice(),
            )
        )
        self.released: list[TokenSequence] = []
        self.passes = PassTimes(granularity=64)
        limits: dict[str, Any] = {"max_sequences": 8, "max_rows": 4096}
        limits |= {"scratch_rows": 1, "draft_rows": 0}
        self.scheduler = Scheduler(
            self.cache,
            **{**limits, **bounds},
            release=self.released.append,
            reclaim=lambda: None,
            num_reclaimable=lambda: 0,
            passes=self.passes,
        )

    def add(self, name: str, length: int = 10, key: str = "", **arguments: Any) -> TokenSequence:
        """Queue a request whose prompt depends on its name."""
        tokens = prompt(length, seed=sum(map(ord, name)))
        sequence = make_sequence(tokens, name=name, key=key, **arguments)
        self.scheduler.add(sequence)
        return sequence

    def step(self, emit: int = 1) -> list[Turn]:
        """Simulate a pass: store its rows, and emit tokens of sequences that have a tree.

        A decoding sequence emits as many tokens as its tree has rows, at most `emit`.
        """
        turns = self.scheduler.schedule()
        for turn in turns:
            sequence, pages = turn.sequence, turn.sequence.pages
            tokens = min(emit, turn.max_tree_rows) if sequence.is_decoding else turn.max_tree_rows
            rows = tokens if sequence.is_decoding else turn.num_pending
            self.cache.append_rows(pages, range(rows))
            sequence.tokens += [NEXT] * tokens
            self.cache.publish(pages, sequence.tokens)
        return turns

    @property
    def running(self) -> list[str]:
        return names(self.scheduler.running)

    @property
    def paused(self) -> list[str]:
        return names(self.scheduler.paused)


def names(sequences: Sequence[TokenSequence]) -> list[str]:
    return [sequence.request_id for sequence in sequences]


def ran(turns: Sequence[Turn]) -> dict[str, tuple[int, int]]:
    """Return the chain and room of each turn, by request id."""
    return {t.sequence.request_id: (t.num_pending, t.max_tree_rows) for t in turns}


def test_without_sequences_no_turn_is_scheduled() -> None:
    assert Harness().step() == []


def test_sequences_are_admitted_in_order_of_arrival() -> None:
    harness = Harness(max_sequences=2)
    for name in "abcd":
        harness.add(name)
    harness.step()
    assert harness.running == ["a", "b"]
    assert harness.scheduler.num_waiting == 2
    harness.scheduler.remove(harness.scheduler.running[0])
    harness.step()
    assert harness.running == ["b", "c"]


def test_keys_are_served_round_robin() -> None:
    harness = Harness(max_sequences=1)
    for name, key in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")]:
        harness.add(name, key=key)
    served = []
    while harness.step():
        served += harness.running
        harness.scheduler.remove(harness.scheduler.running[0])
    assert served == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_key_that_returns_is_queued_after_the_others() -> None:
    harness = Harness(max_sequences=1)
    harness.add("a1", key="a")
    harness.add("b1", key="b")
    harness.step()
    harness.add("a2", key="a")
    harness.scheduler.remove(harness.scheduler.running[0])
    harness.step()
    assert harness.running == ["b1"]


def test_a_prompt_runs_alone_in_one_pass_and_then_decodes() -> None:
    harness = Harness()
    sequence = harness.add("r", 1000)
    assert ran(harness.step()) == {"r": (1000, 1)}
    assert sequence.is_decoding and sequence.num_cached == 0
    assert ran(harness.step()) == {"r": (1, 1)}


def test_a_prompt_longer_than_a_pass_gets_a_tree_only_in_its_last_pass() -> None:
    harness = Harness(max_rows=128)
    harness.add("r", 300)
    assert [ran(harness.step())["r"] for _ in range(4)] == [(128, 0), (128, 0), (44, 1), (1, 1)]


def test_prompts_share_the_rows_of_a_pass_in_order_of_arrival() -> None:
    harness = Harness(max_rows=128)
    for name, length in [("a", 100), ("b", 100), ("c", 100)]:
        harness.add(name, length)
    assert ran(harness.step()) == {"a": (100, 1), "b": (28, 0)}


def test_a_prompt_beside_decoding_sequences_runs_in_chunks() -> None:
    harness = Harness()
    harness.add("a")
    harness.step()
    harness.add("b", 200)
    assert ran(harness.step()) == {"a": (1, 1), "b": (TILE, 0)}
    harness.passes.observe(64, compute_seconds=1.0, link_seconds=2.9)  # time for two more tiles
    assert ran(harness.step()) == {"a": (1, 1), "b": (128, 0)}
    assert ran(harness.step()) == {"a": (1, 1), "b": (8, 1)}


def test_a_stored_prefix_is_not_run_again() -> None:
    harness = Harness()
    first = harness.add("r", 200)
    harness.step()
    harness.scheduler.remove(first)
    again = harness.add("r", 200)
    assert ran(harness.step()) == {"r": (1, 1)}, "its last token must give logits"
    assert again.num_cached == 199


def test_a_second_turn_runs_its_new_tokens_and_the_answers_last_one() -> None:
    harness = Harness()
    first = harness.add("r", 200)
    for _ in range(10):
        harness.step()
    harness.scheduler.remove(first)
    sequence = make_sequence([*first.tokens, *prompt(30, 9)], name="again")
    harness.scheduler.add(sequence)
    assert ran(harness.step()) == {"again": (31, 1)}
    assert sequence.num_cached == 209


def test_trees_share_the_free_pages() -> None:
    harness = Harness(pages=9, scratch_rows=1000)
    harness.add("a", 100)
    harness.add("b", 100)
    harness.step()
    turns = ran(harness.step())
    spare = 2 * PAGE - 100
    assert turns["a"] == (1, spare + 2 * PAGE)
    assert turns["b"] == (1, spare + 3 * PAGE)
    assert harness.cache.num_free_pages == 0


def test_scratch_pages_are_freed_after_each_pass() -> None:
    harness = Harness(pages=9, scratch_rows=1000)
    first = harness.add("a", 100)
    harness.add("b", 100)
    harness.step()
    harness.step()
    harness.scheduler.remove(first)
    assert ran(harness.step()) == {"b": (1, 9 * PAGE - 101)}


def test_scratch_pages_of_trees_do_not_delay_admission() -> None:
    harness = Harness(pages=9, scratch_rows=1000)
    harness.add("a", 100)
    harness.step()
    harness.step()
    assert harness.cache.num_free_pages == 0
    harness.add("b", 100)
    harness.step()
    assert harness.running == ["a", "b"]


def test_a_tree_has_at_most_scratch_rows() -> None:
    harness = Harness(scratch_rows=48)
    harness.add("a")
    harness.step()
    assert ran(harness.step()) == {"a": (1, 48)}


def test_a_draft_that_stores_rows_too_gets_half_of_the_share() -> None:
    harness = Harness(pages=9, scratch_rows=1000, draft_rows=1000)
    harness.add("a", 100)
    harness.step()
    assert ran(harness.step()) == {"a": (1, 2 * PAGE - 100 + 3 * PAGE)}
    assert harness.cache.num_free_pages == 4


def test_admission_leaves_a_free_page_for_each_running_sequence() -> None:
    harness = Harness(pages=6)
    for name in "abc":
        harness.add(name, 2 * PAGE - 3)
    harness.step()
    assert harness.running == ["a", "b"] and harness.cache.num_free_pages == 2


def test_a_waiting_sequence_holds_no_page_of_its_stored_prefix() -> None:
    harness = Harness(pages=6)
    first = harness.add("r", 3 * PAGE + 1)
    harness.step()
    harness.scheduler.remove(first)
    harness.add("other", 3 * PAGE)
    harness.step()
    again = harness.add("r", 3 * PAGE + 1)
    harness.step()
    assert harness.running == ["other"] and harness.scheduler.num_waiting == 1
    harness.scheduler.remove(again)
    harness.scheduler.remove(harness.scheduler.running[0])
    assert harness.cache.num_free_pages == 6


def three_full_sequences(pages: int) -> tuple[Harness, list[TokenSequence]]:
    """Return three sequences that have filled two pages each, so that each needs a third one."""
    harness = Harness(pages=pages, max_sequences=3)
    sequences = [harness.add(name, PAGE) for name in "abc"]
    for _ in range(PAGE + 1):
        harness.step()
    assert harness.running == ["a", "b", "c"] and harness.cache.num_free_pages == pages - 6
    return harness, sequences


def test_the_youngest_sequence_is_paused_when_pages_run_out() -> None:
    harness, (_, _, youngest) = three_full_sequences(pages=6)
    tokens = list(youngest.tokens)
    assert ran(harness.step()) == {"a": (1, 1), "b": (1, 1)}
    assert harness.running == ["a", "b"] and harness.paused == ["c"]
    assert youngest.table is None and youngest.tokens == tokens
    assert harness.released == [youngest]


def test_paused_sequences_resume_before_waiting_ones_and_rerun_tokens() -> None:
    harness, (oldest, _, youngest) = three_full_sequences(pages=7)
    harness.step()
    harness.add("d", 5)
    harness.step()
    assert harness.paused == ["c"] and harness.scheduler.num_waiting == 2
    harness.scheduler.remove(oldest)
    turns = ran(harness.step())
    assert harness.running == ["b", "c"] and harness.scheduler.num_waiting == 1
    assert turns["c"] == (TILE, 0), "in chunks, since another sequence is decoding"
    assert youngest.num_cached == 0, "the number of its first admission"


def test_of_several_paused_sequences_the_oldest_resumes_first() -> None:
    harness = Harness(pages=5)
    oldest, *_ = [harness.add(name, PAGE - 1) for name in "abc"]
    while len(harness.paused) < 2:
        harness.step()
    assert harness.running == ["a"] and harness.paused == ["b", "c"]
    harness.scheduler.remove(oldest)
    harness.step()
    assert harness.running == ["b"]


def test_a_sequence_that_fills_the_whole_cache_still_finishes() -> None:
    harness = Harness(pages=3, scratch_rows=64)
    sequence = harness.add("r", 10)
    while len(sequence.tokens) < 3 * PAGE:
        turns = harness.step(emit=5)
        assert turns, f"stuck at {len(sequence.tokens)} tokens"
    assert harness.paused == []


def test_a_sequence_beyond_the_original_rope_length_recomputes_its_kv() -> None:
    harness = Harness()
    limits = replace(LIMITS, original_length=2 * PAGE + 2)
    crossing = harness.add("long", 2 * PAGE, limits=limits)
    harness.add("short", 10, limits=limits)
    for _ in range(3):
        harness.step()
    assert crossing.is_long and crossing.pages.salt == 0
    turns = harness.scheduler.schedule()
    assert crossing.pages.salt == 1 and crossing.pages.length == 0
    assert ran(turns)["long"] == (TILE, 0)
    assert harness.released == [crossing]
    assert crossing.num_pending == len(crossing.tokens), (
        "pages with short frequencies are not shared"
    )
    assert crossing.num_cached == 0
    assert harness.running == ["short", "long"]


def test_sequences_that_pass_the_rope_length_together_keep_their_order() -> None:
    harness = Harness()
    limits = replace(LIMITS, original_length=20)
    for name in "abc":
        harness.add(name, 20, limits=limits)
    harness.step()
    harness.step()
    assert harness.running == ["a", "b", "c"]
    assert all(sequence.pages.salt == 1 for sequence in harness.scheduler.running)


def test_a_prompt_beyond_the_rope_length_is_long_from_the_start() -> None:
    harness = Harness()
    sequence = harness.add("r", 21, limits=replace(LIMITS, original_length=20))
    harness.step()
    assert sequence.pages.salt == 1 and harness.released == []


def test_cancelled_sequences_are_removed_in_every_status() -> None:
    harness, (running, _, paused) = three_full_sequences(pages=6)
    harness.step()
    waiting, other = harness.add("d", 5, key="w"), harness.add("e", 5, key="w")
    assert harness.paused == ["c"]
    for sequence in (running, paused, waiting):
        sequence.request.cancelled.set()
    assert set(harness.scheduler.drop_cancelled()) == {running, paused, waiting}
    assert names(list(harness.scheduler.all_sequences())) == ["b", "e"]
    other.request.cancelled.set()
    harness.scheduler.drop_cancelled()
    assert harness.scheduler.num_waiting == 0
    assert names([turn.sequence for turn in harness.step()]) == ["b"]
    harness.scheduler.remove(harness.scheduler.running[0])
    assert harness.cache.num_free_pages == 6 and harness.step() == []


def test_all_choices_of_a_cancelled_request_are_removed() -> None:
    harness = Harness(max_sequences=2)
    first, forks = with_forks(harness, 2)
    first.request.cancelled.set()
    assert harness.scheduler.drop_cancelled() == [first, *forks]
    assert harness.cache.num_free_pages == harness.cache.num_pages


def with_forks(harness: Harness, count: int) -> tuple[TokenSequence, list[TokenSequence]]:
    """Return the choices of a request, forked after its prompt as the engine does."""
    request = make_request(prompt(100), n=count + 1)
    first = choice_of(request)
    harness.scheduler.add(first)
    harness.step()
    forks = [choice_of(request, number + 1) for number in range(count)]
    for fork in forks:
        fork.tokens.append(NEXT)
        harness.scheduler.add_fork(fork, harness.cache.fork(first.pages))
    return first, forks


def test_after_too_large_passes_fewer_rows_run_and_then_the_longest_sequence_alone() -> None:
    harness = Harness(max_rows=256)
    for name, length in (("a", 20), ("long", 200), ("b", 30)):
        harness.add(name, length)
    rows = []
    for _ in range(4):
        turns = harness.scheduler.schedule()
        rows.append({turn.sequence.request_id: turn.num_rows for turn in turns})
        harness.scheduler.lower_max_rows(turns)
    assert rows == [
        {"a": 20, "long": 200, "b": 30},
        {"a": 20, "long": 105},
        {"a": 20, "long": 42},
        {"long": 31},
    ]
    for _ in range(30):
        harness.scheduler.raise_max_rows()
    assert [turn.num_rows for turn in harness.scheduler.schedule()] == [20, 200, 30]


def test_a_fork_runs_beside_its_first_choice_and_decodes_at_once() -> None:
    harness = Harness()
    first, forks = with_forks(harness, 2)
    assert harness.scheduler.running == [first, *forks]
    assert all(fork.is_decoding for fork in forks)
    turns = harness.step()
    assert [(turn.sequence, turn.num_pending) for turn in turns] == [
        (first, 1),
        *((f, 1) for f in forks),
    ]


def test_a_fork_beyond_max_sequences_waits_first_and_holds_no_pages() -> None:
    harness = Harness(max_sequences=2)
    first, forks = with_forks(harness, 3)
    harness.add("later")
    assert harness.scheduler.running == [first, forks[0]]
    assert list(harness.scheduler.paused) == forks[1:]
    assert all(fork.table is None for fork in forks[1:])
    harness.scheduler.remove(first)
    turns = harness.step()
    assert harness.scheduler.running == [forks[0], forks[1]]
    assert turns[1].num_pending == 1, "its prompt is still stored"


def test_a_fork_without_a_free_page_waits_first() -> None:
    harness = Harness(pages=2)
    first, (fork,) = with_forks(harness, 1)
    assert fork.table is None
    assert harness.scheduler.running == [first] and list(harness.scheduler.paused) == [fork]


def test_removing_a_sequence_frees_its_pages() -> None:
    harness = Harness(max_sequences=1)
    running, waiting = harness.add("a"), harness.add("b")
    harness.step()
    harness.scheduler.remove(running)
    harness.scheduler.remove(waiting)
    assert list(harness.scheduler.all_sequences()) == []
    assert harness.released == [running]
    assert harness.cache.num_free_pages == harness.cache.num_pages


@settings(max_examples=100)
@given(
    asked=st.lists(
        st.tuples(st.integers(1, 200), st.integers(1, 90), st.sampled_from("xyz")),
        min_size=1,
        max_size=9,
    ),
    pages=st.integers(6, 14),
    scratch=st.integers(1, 200),
    most=st.integers(1, 5),
    rope_length=st.none() | st.integers(1, 250),
    leaves=st.sets(st.integers(0, 8)),
    emit=st.integers(1, 6),
)
def test_random_requests_all_finish_and_no_page_is_lost(
    asked: list[tuple[int, int, str]],
    pages: int,
    scratch: int,
    most: int,
    rope_length: int | None,
    leaves: set[int],
    emit: int,
) -> None:
    harness = Harness(pages=pages, scratch_rows=scratch, max_sequences=most, max_rows=256)
    limits = replace(LIMITS, original_length=rope_length)
    wanted = {
        harness.add(str(number), length, key, limits=limits): length + tokens
        for number, (length, tokens, key) in enumerate(asked)
    }
    steps = 0
    while any(True for _ in harness.scheduler.all_sequences()):
        steps += 1
        turns = harness.step(emit)
        assert turns, "some sequence runs while sequences remain"
        assert steps < 5000
        assert len(turns) <= most
        assert sum(turn.num_pending for turn in turns) <= 256
        for sequence in list(harness.scheduler.running):
            number = int(sequence.request_id)
            if len(sequence.tokens) >= wanted[sequence]:
                harness.scheduler.remove(sequence)
            elif number in leaves and steps > number:
                sequence.request.cancelled.set()
        harness.scheduler.drop_cancelled()
    assert harness.cache.num_free_pages == pages
    assert not any(harness.cache._references)
