"""Tests of the choice of a replica: the earliest first token, with stale and missing reports."""

from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace

from hypothesis import given, settings, strategies as st

from cluster.page_hashes import PAGE_TOKENS, page_hashes
from cluster.placement import ASSUMED_PASS_SECONDS, STALE_SECONDS, Placement, Prompt
from cluster.report import Load, PageChange

IDLE = Load(
    prompt_seconds=0.0,
    sequences=0,
    max_sequences=8,
    turn_seconds=2.0,
    free_pages=1000,
    pass_seconds=0.4,
    row_seconds=0.001,
    longest=32_000,
)


def prompt_of(tokens: Sequence[int]) -> Prompt:
    return Prompt(len(tokens), page_hashes(tokens), least_tokens=len(tokens) + 1)


def placement(loads: dict[str, Load], *, asked_at: float = 0.0) -> Placement:
    made = Placement()
    for name, load in loads.items():
        made.add(name)
        made.report(name, load, PageChange(), asked_at)
    return made


LONG = list(range(4000))  # 4 s of work without stored pages
PAGES = page_hashes(LONG)


def hold(made: Placement, name: str, load: Load = IDLE) -> None:
    made.report(name, load, PageChange(added=PAGES), asked_at=0.0)


def choice(made: Placement, prompt: Prompt, now: float = 0.1) -> str | None:
    placed = made.place(prompt, now)
    return None if placed is None else placed.replica


def test_a_replica_that_holds_the_pages_is_chosen() -> None:
    made = placement({"a": IDLE, "b": IDLE})
    hold(made, "b")
    placed = made.place(prompt_of(LONG), 0.1)
    assert placed is not None and placed.replica == "b"
    assert placed.cached_tokens == len(PAGES) * PAGE_TOKENS


def test_stored_pages_do_not_outweigh_a_long_queue() -> None:
    for waiting, chosen in ((5.0, "a"), (2.0, "b")):
        made = placement({"a": IDLE, "b": IDLE})
        hold(made, "b", replace(IDLE, prompt_seconds=waiting, sequences=3))
        assert choice(made, prompt_of(LONG)) == chosen


def test_pages_decide_between_replicas_that_are_a_pass_apart_or_less() -> None:
    for waiting, chosen in ((0.55, "b"), (0.65, "a")):
        made = placement({"a": IDLE, "b": IDLE})
        prompt = prompt_of(LONG[:300])  # a pass takes longer than computing it anew
        busy = replace(IDLE, prompt_seconds=waiting, sequences=1)
        made.report("b", busy, PageChange(added=PAGES), asked_at=0.0)
        assert choice(made, prompt) == chosen


def test_a_replica_that_has_run_no_pass_is_taken_for_a_usual_one() -> None:
    fresh = replace(IDLE, pass_seconds=0.0, row_seconds=0.0)
    made = placement({"a": IDLE, "b": fresh})
    hold(made, "a")
    placed = made.place(prompt_of(LONG), 0.1)
    assert placed is not None and placed.replica == "a"
    seen = Counter(choice(made, Prompt(1000)) for _ in range(10))
    assert seen["b"] and seen["a"]
    only = placement({"a": fresh})
    assert choice(only, Prompt(10)) == "a"


def test_a_fast_replica_is_preferred_until_it_is_later_than_a_slow_one() -> None:
    slow = replace(IDLE, pass_seconds=1.5, row_seconds=0.004)
    made = placement({"fast": IDLE, "slow": slow})
    seen = [choice(made, Prompt(1000)) for _ in range(6)]
    assert seen[:3] == ["fast"] * 3 and "slow" in seen
    assert seen.count("fast") > seen.count("slow")


def test_a_prompt_whose_beginning_is_being_computed_follows_it() -> None:
    made = placement({"a": IDLE, "b": IDLE})
    first = choice(made, prompt_of(LONG), now=0.1)
    assert first is not None
    made.report(first, replace(IDLE, prompt_seconds=1.0, sequences=1), PageChange(), asked_at=0.2)
    assert choice(made, prompt_of([*LONG, *range(200)]), now=0.3) == first


def test_replicas_that_have_not_reported_lately_get_nothing() -> None:
    made = placement({"a": IDLE})
    made.add("unheard")
    assert choice(made, Prompt(10), now=STALE_SECONDS) == "a"
    assert choice(made, Prompt(10), now=STALE_SECONDS + 0.1) is None
    made.report("stranger", IDLE, PageChange(), asked_at=9.0)
    assert choice(made, Prompt(10), now=9.0) is None


def test_a_request_that_does_not_fit_a_replica_is_not_placed_there() -> None:
    made = placement({"a": replace(IDLE, longest=100), "b": replace(IDLE, prompt_seconds=60.0)})
    assert choice(made, Prompt(90, least_tokens=100)) == "a"
    assert choice(made, Prompt(90, least_tokens=101)) == "b"


def test_a_replica_without_free_pages_is_the_last_choice() -> None:
    made = placement({"a": replace(IDLE, free_pages=3), "b": replace(IDLE, prompt_seconds=60.0)})
    assert choice(made, Prompt(64 * 3)) == "a"
    assert choice(made, Prompt(64)) == "b"  # the first request needs all three
    made.remove("b")
    assert choice(made, Prompt(64)) == "a"


def test_a_replica_without_places_counts_the_turns_before_the_request() -> None:
    made = placement({"a": replace(IDLE, sequences=8), "b": replace(IDLE, pass_seconds=2.0)})
    assert choice(made, Prompt(10)) == "b"
    made.remove("b")
    placed = made.place(Prompt(10), 0.1)
    assert placed is not None and placed.expected_seconds >= IDLE.turn_seconds


def test_distance_decides_between_equal_replicas() -> None:
    made = placement({"a": IDLE, "b": IDLE})
    made.report("a", IDLE, PageChange(), asked_at=0.0, distance=0.01)
    assert choice(made, Prompt(10)) == "b"


def test_the_end_of_a_request_leaves_its_pages_if_they_were_computed() -> None:
    for is_stored in (True, False):
        made = placement({"a": IDLE})
        placed = made.place(prompt_of(LONG), 0.1)
        assert placed is not None and made.num_placed("a") == 1
        made.end(placed, is_stored=is_stored)
        made.end(placed, is_stored=True)
        assert made.num_placed("a") == 0 and made.num_pages("a") == (len(PAGES) * is_stored)
        again = made.place(prompt_of(LONG), 0.1)
        assert again is not None and bool(again.cached_tokens) is is_stored


loads = st.builds(
    Load,
    prompt_seconds=st.floats(0, 100),
    sequences=st.integers(0, 20),
    max_sequences=st.integers(1, 16),
    turn_seconds=st.floats(0, 30),
    free_pages=st.integers(0, 500),
    pass_seconds=st.floats(0.001, 10),
    row_seconds=st.floats(0, 0.1),
    longest=st.integers(64, 20_000),
)
fleets = st.lists(st.tuples(loads, st.floats(0, 8), st.integers(0, 20)), min_size=1, max_size=4)
prompts = st.lists(st.integers(1, 1500), min_size=1, max_size=6)
TEXT = list(range(20 * PAGE_TOKENS))
TEXT_PAGES = page_hashes(TEXT)


def fleet(found: list[tuple[Load, float, int]], shift: float = 0.0) -> Placement:
    """Return a fleet whose replicas have reported at some time and hold some pages of a text."""
    made = Placement()
    for number, (load, asked_at, pages) in enumerate(found):
        made.add(str(number))
        made.report(str(number), load, PageChange(added=TEXT_PAGES[:pages]), asked_at + shift)
    return made


def of_length(tokens: int) -> Prompt:
    return Prompt(tokens, page_hashes(TEXT[:tokens]), least_tokens=tokens + 1)


@settings(deadline=None, max_examples=40)
@given(fleets, prompts)
def test_no_replica_that_can_take_a_request_is_earlier_by_a_pass(
    found: list[tuple[Load, float, int]], lengths: list[int]
) -> None:
    made, now, taken = fleet(found), 8.0, Counter[str]()
    for tokens in lengths:
        offers = []
        for number, (load, asked_at, _) in enumerate(found):
            alone = deepcopy(made).place(of_length(tokens), now, str(number).__eq__)
            can = now - asked_at <= STALE_SECONDS and tokens < load.longest
            assert (alone is not None) is can
            if alone is not None:
                offers.append(alone)
        placed = made.place(of_length(tokens), now)
        assert (placed is None) is (not offers)
        if placed is not None:
            least = min(own.expected_seconds for own in offers)
            roomy = [
                own
                for own in offers
                if own.num_pages <= found[int(own.replica)][0].free_pages - taken[own.replica]
            ]
            taken[placed.replica] += placed.num_pages
            a_pass = max(ASSUMED_PASS_SECONDS, *(load.pass_seconds for load, _, _ in found))
            assert placed.expected_seconds <= least + a_pass or len(roomy) < len(offers)
            assert placed.cached_tokens < tokens


@settings(deadline=None, max_examples=40)
@given(fleets, prompts, st.floats(-1e4, 1e4))
def test_only_ages_matter_and_no_clock(
    found: list[tuple[Load, float, int]], lengths: list[int], shift: float
) -> None:
    whole = [(load, float(round(asked_at)), pages) for load, asked_at, pages in found]
    shift = float(round(shift))
    one, other = fleet(whole), fleet(whole, shift)
    for tokens in lengths:
        assert choice(one, of_length(tokens), 8.0) == choice(other, of_length(tokens), 8.0 + shift)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 8), st.integers(1, 60), st.integers(1, 900))
def test_a_burst_is_spread_over_equal_replicas(replicas: int, requests: int, tokens: int) -> None:
    made = placement({str(number): IDLE for number in range(replicas)})
    seen = Counter(choice(made, Prompt(tokens)) for _ in range(requests))
    counts = [seen[str(number)] for number in range(replicas)]
    assert max(counts) - min(counts) <= 1


@settings(deadline=None, max_examples=40)
@given(fleets, prompts)
def test_reports_and_ends_leave_nothing_behind(
    found: list[tuple[Load, float, int]], lengths: list[int]
) -> None:
    made = fleet(found)
    placed = [made.place(of_length(tokens), 8.0) for tokens in lengths]
    for own in placed:
        if own is not None:
            made.end(own, is_stored=False)
    for number, (load, asked_at, _) in enumerate(found):
        made.report(str(number), load, PageChange(), asked_at)
    fresh = fleet(found)
    for tokens in lengths:
        one, other = made.place(of_length(tokens), 8.0), fresh.place(of_length(tokens), 8.0)
        assert (one and (one.replica, one.expected_seconds)) == (
            other and (other.replica, other.expected_seconds)
        )


def test_pages_decide_where_the_difference_is_less_than_a_pass() -> None:
    made = Placement()
    text = list(range(200))
    for name, distance, pages in (("near", 0.0, ()), ("far", 0.03, page_hashes(text))):
        made.add(name)
        made.report(name, IDLE, PageChange(pages, is_whole=True), 0.0, distance)
    whole, shared = Prompt(220, page_hashes(text)), Prompt(1000, page_hashes(text[:64]))
    placed = made.place(whole, 0.1)
    assert placed is not None and placed.replica == "far" and placed.cached_tokens == 192
    placed = made.place(shared, 0.1)  # a beginning that many prompts share
    assert placed is not None and placed.replica == "near"


def test_requests_are_spread_before_any_pass_has_run() -> None:
    fresh = replace(IDLE, pass_seconds=0.0, row_seconds=0.0, turn_seconds=0.0)
    made = Placement()
    for name, distance in (("near", 0.01), ("far", 0.03)):
        made.add(name)
        made.report(name, fresh, PageChange(), 0.0, distance)
    placed = [choice(made, prompt_of([number] * 40)) for number in range(8)]
    assert Counter(placed) == {"near": 4, "far": 4}


def test_a_replica_that_has_run_no_pass_is_not_faster_than_all_others() -> None:
    fresh = replace(IDLE, pass_seconds=0.0, row_seconds=0.0, turn_seconds=0.0)
    made = placement({"a": IDLE, "fresh": fresh})
    hold(made, "a")
    assert choice(made, prompt_of(LONG)) == "a"


def test_prompts_of_requests_that_have_ended_count_no_more() -> None:
    busy = replace(IDLE, sequences=2, prompt_seconds=6.0)
    made = placement({"a": IDLE})
    placed = [made.place(prompt_of(LONG[:1000]), 0.0), made.place(prompt_of(LONG), 0.0)]
    made.report("a", busy, PageChange(), asked_at=1.0)
    before = made.place(Prompt(100), 1.1)
    for own in placed:
        assert own is not None
        made.end(own)
    after = made.place(Prompt(100), 1.1)
    assert before is not None and after is not None
    assert after.expected_seconds < before.expected_seconds - 3.9  # they had 4.04 s
