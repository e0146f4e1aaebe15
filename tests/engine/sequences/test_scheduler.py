"""Who runs, with how many rows and pages: the scheduler over a tiny cache, without a model."""

from collections.abc import Sequence as Seq
from dataclasses import replace
from typing import Any

import torch
from hypothesis import given, settings, strategies as st

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.sequences.scheduler import Scheduler, Turn
from engine.sequences.sequence import Sequence
from engine.spec import TILE
from engine.streaming.cpu_link import CpuDevice
from engine.timing import PassTimes
from tests.engine.models import prompt
from tests.engine.sequence_makers import LIMITS, choice_of, make_request, make_sequence

NEXT = 7  # the token every pass emits


class Desk:
    """A scheduler, who left its pages, and passes that a model would run."""

    def __init__(self, pages: int = 64, **bounds: Any) -> None:
        self.cache = KVCache(PagePool(1, pages, 1, 4, torch.float32, CpuDevice()))
        self.released: list[Sequence] = []
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

    def add(self, name: str, length: int = 10, key: str = "", **arguments: Any) -> Sequence:
        """Queue a request whose prompt no other shares."""
        tokens = prompt(length, seed=sum(map(ord, name)))
        sequence = make_sequence(tokens, name=name, key=key, **arguments)
        self.scheduler.add(sequence)
        return sequence

    def step(self, emit: int = 1) -> list[Turn]:
        """One pass: what it ran is stored; who has a tree emits (at most `emit` tokens)."""
        turns = self.scheduler.schedule()
        for turn in turns:
            sequence, pages = turn.sequence, turn.sequence.pages
            tokens = min(emit, turn.room) if sequence.is_decoding else turn.room
            rows = tokens if sequence.is_decoding else turn.chain
            self.cache.keep(pages, range(rows))
            sequence.tokens += [NEXT] * tokens
            self.cache.publish(pages, sequence.tokens)
        return turns

    @property
    def running(self) -> list[str]:
        return names(self.scheduler.running)

    @property
    def paused(self) -> list[str]:
        return names(self.scheduler.paused)


def names(sequences: Seq[Sequence]) -> list[str]:
    return [sequence.request_id for sequence in sequences]


def ran(turns: Seq[Turn]) -> dict[str, tuple[int, int]]:
    """Request -> (chain, room)."""
    return {t.sequence.request_id: (t.chain, t.room) for t in turns}


def test_nobody_runs_in_an_empty_house() -> None:
    assert Desk().step() == []


def test_first_come_first_served() -> None:
    desk = Desk(max_sequences=2)
    for name in "abcd":
        desk.add(name)
    desk.step()
    assert desk.running == ["a", "b"]
    assert desk.scheduler.num_waiting == 2
    desk.scheduler.remove(desk.scheduler.running[0])
    desk.step()
    assert desk.running == ["b", "c"]


def test_keys_take_turns_however_much_one_of_them_asks() -> None:
    desk = Desk(max_sequences=1)
    for name, key in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("c1", "c"), ("c2", "c")]:
        desk.add(name, key=key)
    served = []
    while desk.step():
        served += desk.running
        desk.scheduler.remove(desk.scheduler.running[0])
    assert served == ["a1", "b1", "c1", "a2", "c2", "a3"]


def test_a_key_that_comes_back_stands_behind_the_others() -> None:
    desk = Desk(max_sequences=1)
    desk.add("a1", key="a")
    desk.add("b1", key="b")
    desk.step()
    desk.add("a2", key="a")
    desk.scheduler.remove(desk.scheduler.running[0])
    desk.step()
    assert desk.running == ["b1"]


def test_a_prompt_runs_alone_in_one_pass_and_then_decodes() -> None:
    desk = Desk()
    sequence = desk.add("r", 1000)
    assert ran(desk.step()) == {"r": (1000, 1)}
    assert sequence.is_decoding and sequence.num_cached == 0
    assert ran(desk.step()) == {"r": (1, 1)}


def test_a_prompt_longer_than_a_pass_takes_several_and_a_root_only_at_its_end() -> None:
    desk = Desk(max_rows=128)
    desk.add("r", 300)
    assert [ran(desk.step())["r"] for _ in range(4)] == [(128, 0), (128, 0), (44, 1), (1, 1)]


def test_prompts_share_the_rows_of_a_pass_first_come_first_served() -> None:
    desk = Desk(max_rows=128)
    for name, length in [("a", 100), ("b", 100), ("c", 100)]:
        desk.add(name, length)
    assert ran(desk.step()) == {"a": (100, 1), "b": (28, 0)}


def test_a_prompt_beside_decoding_sequences_comes_in_chunks() -> None:
    desk = Desk()
    desk.add("a")
    desk.step()
    desk.add("b", 200)
    assert ran(desk.step()) == {"a": (1, 1), "b": (TILE, 0)}
    desk.passes.observe(64, compute_seconds=1.0, link_seconds=2.7)  # hides two tiles more
    assert ran(desk.step()) == {"a": (1, 1), "b": (128, 0)}
    assert ran(desk.step()) == {"a": (1, 1), "b": (8, 1)}


def test_a_stored_prefix_is_not_run_again() -> None:
    desk = Desk()
    first = desk.add("r", 200)
    desk.step()
    desk.scheduler.remove(first)
    again = desk.add("r", 200)
    assert ran(desk.step()) == {"r": (1, 1)}, "its last token must give logits"
    assert again.num_cached == 199


def test_a_second_turn_runs_the_new_tokens_and_the_last_one_of_the_answer() -> None:
    desk = Desk()
    first = desk.add("r", 200)
    for _ in range(10):
        desk.step()
    desk.scheduler.remove(first)
    sequence = make_sequence([*first.tokens, *prompt(30, 9)], name="again")
    desk.scheduler.add(sequence)
    assert ran(desk.step()) == {"again": (31, 1)}
    assert sequence.num_cached == 209


def test_trees_get_their_share_of_the_free_pages() -> None:
    desk = Desk(pages=9, scratch_rows=1000)
    desk.add("a", 100)
    desk.add("b", 100)
    desk.step()
    turns = ran(desk.step())
    spare = 2 * PAGE - 100
    assert turns["a"] == (1, spare + 2 * PAGE)
    assert turns["b"] == (1, spare + 3 * PAGE)
    assert desk.cache.num_free_pages == 0


def test_scratch_is_given_back_after_each_pass() -> None:
    desk = Desk(pages=9, scratch_rows=1000)
    first = desk.add("a", 100)
    desk.add("b", 100)
    desk.step()
    desk.step()
    desk.scheduler.remove(first)
    assert ran(desk.step()) == {"b": (1, 9 * PAGE - 101)}


def test_pages_of_trees_are_no_reason_to_let_somebody_wait() -> None:
    desk = Desk(pages=9, scratch_rows=1000)
    desk.add("a", 100)
    desk.step()
    desk.step()
    assert desk.cache.num_free_pages == 0
    desk.add("b", 100)
    desk.step()
    assert desk.running == ["a", "b"]


def test_a_tree_has_at_most_scratch_rows() -> None:
    desk = Desk(scratch_rows=48)
    desk.add("a")
    desk.step()
    assert ran(desk.step()) == {"a": (1, 48)}


def test_a_draft_that_needs_pages_of_its_own_gets_half_of_the_share() -> None:
    desk = Desk(pages=9, scratch_rows=1000, draft_rows=1000)
    desk.add("a", 100)
    desk.step()
    assert ran(desk.step()) == {"a": (1, 2 * PAGE - 100 + 3 * PAGE)}
    assert desk.cache.num_free_pages == 4


def test_who_comes_in_leaves_a_page_to_each_that_runs() -> None:
    desk = Desk(pages=6)
    for name in "abc":
        desk.add(name, 2 * PAGE - 3)
    desk.step()
    assert desk.running == ["a", "b"] and desk.cache.num_free_pages == 2


def test_who_must_wait_holds_no_page_of_the_prefix_that_is_stored_for_it() -> None:
    desk = Desk(pages=6)
    first = desk.add("r", 3 * PAGE + 1)
    desk.step()
    desk.scheduler.remove(first)
    desk.add("other", 3 * PAGE)
    desk.step()
    again = desk.add("r", 3 * PAGE + 1)
    desk.step()
    assert desk.running == ["other"] and desk.scheduler.num_waiting == 1
    desk.scheduler.remove(again)
    desk.scheduler.remove(desk.scheduler.running[0])
    assert desk.cache.num_free_pages == 6


def crowded(pages: int) -> tuple[Desk, list[Sequence]]:
    """Three sequences of two full pages each; all of them want a third now."""
    desk = Desk(pages=pages, max_sequences=3)
    sequences = [desk.add(name, PAGE) for name in "abc"]
    for _ in range(PAGE + 1):
        desk.step()
    assert desk.running == ["a", "b", "c"] and desk.cache.num_free_pages == pages - 6
    return desk, sequences


def test_the_youngest_pauses_when_pages_run_out_and_its_pages_go_to_the_others() -> None:
    desk, (_, _, youngest) = crowded(pages=6)
    tokens = list(youngest.tokens)
    assert ran(desk.step()) == {"a": (1, 1), "b": (1, 1)}
    assert desk.running == ["a", "b"] and desk.paused == ["c"]
    assert youngest.table is None and youngest.tokens == tokens
    assert desk.released == [youngest]


def test_the_paused_go_on_before_any_that_wait_and_run_their_tokens_again() -> None:
    desk, (oldest, _, youngest) = crowded(pages=7)
    desk.step()
    desk.add("d", 5)
    desk.step()
    assert desk.paused == ["c"] and desk.scheduler.num_waiting == 2
    desk.scheduler.remove(oldest)
    turns = ran(desk.step())
    assert desk.running == ["b", "c"] and desk.scheduler.num_waiting == 1
    assert turns["c"] == (TILE, 0), "beside a decoding one, in chunks"
    assert youngest.num_cached == 0, "as it was told at its first admission"


def test_of_several_paused_the_oldest_goes_on_first() -> None:
    desk = Desk(pages=5)
    oldest, *_ = [desk.add(name, PAGE - 1) for name in "abc"]
    while len(desk.paused) < 2:
        desk.step()
    assert desk.running == ["a"] and desk.paused == ["b", "c"]
    desk.scheduler.remove(oldest)
    desk.step()
    assert desk.running == ["b"]


def test_a_sequence_that_fills_the_whole_cache_goes_on_to_its_end() -> None:
    desk = Desk(pages=3, scratch_rows=64)
    sequence = desk.add("r", 10)
    while len(sequence.tokens) < 3 * PAGE:
        turns = desk.step(emit=5)
        assert turns, f"stuck at {len(sequence.tokens)} tokens"
    assert desk.paused == []


def test_who_crosses_the_ropes_border_starts_over_with_other_kv() -> None:
    desk = Desk()
    limits = replace(LIMITS, original_length=2 * PAGE + 2)
    crossing = desk.add("long", 2 * PAGE, limits=limits)
    desk.add("short", 10, limits=limits)
    for _ in range(3):
        desk.step()
    assert crossing.is_long and crossing.pages.salt == 0
    turns = desk.scheduler.schedule()
    assert crossing.pages.salt == 1 and crossing.pages.length == 0
    assert ran(turns)["long"] == (TILE, 0)
    assert desk.released == [crossing]
    assert crossing.num_pending == len(crossing.tokens), "no page of the short kind is shared"
    assert crossing.num_cached == 0
    assert desk.running == ["short", "long"]


def test_those_that_cross_the_border_together_keep_their_order() -> None:
    desk = Desk()
    limits = replace(LIMITS, original_length=20)
    for name in "abc":
        desk.add(name, 20, limits=limits)
    desk.step()
    desk.step()
    assert desk.running == ["a", "b", "c"]
    assert all(sequence.pages.salt == 1 for sequence in desk.scheduler.running)


def test_a_prompt_behind_the_border_is_long_from_the_start() -> None:
    desk = Desk()
    sequence = desk.add("r", 21, limits=replace(LIMITS, original_length=20))
    desk.step()
    assert sequence.pages.salt == 1 and desk.released == []


def test_the_cancelled_vanish_wherever_they_are() -> None:
    desk, (running, _, paused) = crowded(pages=6)
    desk.step()
    waiting, other = desk.add("d", 5, key="w"), desk.add("e", 5, key="w")
    assert desk.paused == ["c"]
    for sequence in (running, paused, waiting):
        sequence.request.cancelled.set()
    assert set(desk.scheduler.drop_cancelled()) == {running, paused, waiting}
    assert names(list(desk.scheduler.all())) == ["b", "e"]
    other.request.cancelled.set()
    desk.scheduler.drop_cancelled()
    assert desk.scheduler.num_waiting == 0
    assert names([turn.sequence for turn in desk.step()]) == ["b"]
    desk.scheduler.remove(desk.scheduler.running[0])
    assert desk.cache.num_free_pages == 6 and desk.step() == []


def test_all_choices_of_a_cancelled_request_vanish() -> None:
    desk = Desk(max_sequences=2)
    first, forks = with_forks(desk, 2)
    first.request.cancelled.set()
    assert desk.scheduler.drop_cancelled() == [first, *forks]
    assert desk.cache.num_free_pages == desk.cache.num_pages


def with_forks(desk: Desk, count: int) -> tuple[Sequence, list[Sequence]]:
    """A request with further choices, forked behind its prompt as the engine does."""
    request = make_request(prompt(100), n=count + 1)
    first = choice_of(request)
    desk.scheduler.add(first)
    desk.step()
    forks = [choice_of(request, number + 1) for number in range(count)]
    for fork in forks:
        fork.tokens.append(NEXT)
        desk.scheduler.adopt(fork, desk.cache.fork(first.pages))
    return first, forks


def test_a_fork_runs_beside_its_first_choice_and_decodes_at_once() -> None:
    desk = Desk()
    first, forks = with_forks(desk, 2)
    assert desk.scheduler.running == [first, *forks]
    assert all(fork.is_decoding for fork in forks)
    turns = desk.step()
    assert [(turn.sequence, turn.chain) for turn in turns] == [(first, 1), *((f, 1) for f in forks)]


def test_a_fork_beyond_the_most_sequences_waits_first_and_holds_no_pages() -> None:
    desk = Desk(max_sequences=2)
    first, forks = with_forks(desk, 3)
    desk.add("later")
    assert desk.scheduler.running == [first, forks[0]]
    assert list(desk.scheduler.paused) == forks[1:]
    assert all(fork.table is None for fork in forks[1:])
    desk.scheduler.remove(first)
    turns = desk.step()
    assert desk.scheduler.running == [forks[0], forks[1]]
    assert turns[1].chain == 1, "its prompt is still stored"


def test_a_fork_that_got_no_page_waits_first() -> None:
    desk = Desk(pages=2)
    first, (fork,) = with_forks(desk, 1)
    assert fork.table is None
    assert desk.scheduler.running == [first] and list(desk.scheduler.paused) == [fork]


def test_who_is_removed_is_gone_and_its_pages_are_back() -> None:
    desk = Desk(max_sequences=1)
    running, waiting = desk.add("a"), desk.add("b")
    desk.step()
    desk.scheduler.remove(running)
    desk.scheduler.remove(waiting)
    assert list(desk.scheduler.all()) == []
    assert desk.released == [running]
    assert desk.cache.num_free_pages == desk.cache.num_pages


@settings(max_examples=100, deadline=None)
@given(
    asked=st.lists(
        st.tuples(st.integers(1, 200), st.integers(1, 90), st.sampled_from("xyz")),
        min_size=1,
        max_size=9,
    ),
    pages=st.integers(6, 14),
    scratch=st.integers(1, 200),
    most=st.integers(1, 5),
    border=st.none() | st.integers(1, 250),
    leaves=st.sets(st.integers(0, 8)),
    emit=st.integers(1, 6),
)
def test_everybody_is_served_to_the_end_and_no_page_is_lost(
    asked: list[tuple[int, int, str]],
    pages: int,
    scratch: int,
    most: int,
    border: int | None,
    leaves: set[int],
    emit: int,
) -> None:
    desk = Desk(pages=pages, scratch_rows=scratch, max_sequences=most, max_rows=256)
    limits = replace(LIMITS, original_length=border)
    wanted = {
        desk.add(str(number), length, key, limits=limits): length + tokens
        for number, (length, tokens, key) in enumerate(asked)
    }
    steps = 0
    while any(True for _ in desk.scheduler.all()):
        steps += 1
        turns = desk.step(emit)
        assert turns, "somebody runs while somebody waits"
        assert steps < 5000
        assert len(turns) <= most
        assert sum(turn.chain for turn in turns) <= 256
        for sequence in list(desk.scheduler.running):
            number = int(sequence.request_id)
            if len(sequence.tokens) >= wanted[sequence]:
                desk.scheduler.remove(sequence)
            elif number in leaves and steps > number:
                sequence.request.cancelled.set()
        desk.scheduler.drop_cancelled()
    assert desk.cache.num_free_pages == pages
    assert not any(desk.cache._references)
