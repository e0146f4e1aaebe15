"""Guesses, their hit rates, the trees searched among them, and the index of n-grams."""

from collections.abc import Sequence
from math import exp, isclose, log

import pytest
from hypothesis import given, strategies as st

from engine.drafting.lookups.lookup import (
    MAX_RATE,
    MEMORY,
    MIN_PROBABILITY,
    BestFirstSearch,
    Guess,
    HitRates,
)
from engine.drafting.lookups.ngram_index import (
    LENGTHS,
    LONGEST,
    Match,
    NgramIndex,
    guess_from_matches,
)
from tests.engine.lookups import check, leaves, paths
from tests.engine.sequence_makers import EOS, make_sequence

GUESSES = (Guess("a", 0.5, {10: 0.75, 11: 0.25}), Guess("b", 0.8, {12: 1.0}))


def counting(guesses: Sequence[Guess] = GUESSES) -> BestFirstSearch[int]:
    """Return a search with the same guesses in all states; the state is the depth."""
    return BestFirstSearch("test", lambda depth: guesses, lambda depth, token: depth + 1)


def test_a_guess_is_tried_only_where_all_before_it_missed() -> None:
    probabilities = dict(HitRates().estimate_probabilities(GUESSES))
    assert probabilities == pytest.approx({10: 0.5 * 0.75, 11: 0.5 * 0.25, 12: 0.5 * 0.8})


def test_the_probabilities_of_all_tokens_add_up_to_at_most_one() -> None:
    guesses = [Guess(kind, 1.0, {kind: 1.0}) for kind in range(50)]
    probabilities = HitRates().estimate_probabilities(guesses)
    assert sum(probability for _, probability in probabilities) <= 1
    assert probabilities[0] == (0, MAX_RATE)


def test_hit_rates_approach_the_observed_ones() -> None:
    rates = HitRates()
    for trial in range(100):
        rates.record(GUESSES, 10 if trial % 10 == 0 else 12)
    assert rates.estimate_rate(GUESSES[0]) == pytest.approx(0.1, abs=0.03)
    assert rates.estimate_rate(GUESSES[1]) > 0.95  # tried only where the first missed
    assert rates.estimate_rate(Guess("c", 0.3, {})) == 0.3


def test_a_guess_after_the_one_that_was_right_is_not_counted() -> None:
    rates = HitRates()
    rates.record(GUESSES, 11)
    assert rates.estimate_rate(GUESSES[0]) > 0.5
    assert rates.estimate_rate(GUESSES[1]) == GUESSES[1].prior


def test_old_trials_fade() -> None:
    rates = HitRates()
    for _ in range(10_000):
        rates.record(GUESSES, 10)
    for _ in range(int(2 * MEMORY)):
        rates.record(GUESSES, 12)
    assert rates.estimate_rate(GUESSES[0]) < 0.2


def test_a_tree_has_the_most_probable_rows_and_their_scores() -> None:
    sequence = make_sequence([5])
    tree = counting().grow(sequence, 0, depth=2, rows=6)
    check(tree, sequence, 2, 6, "test")
    assert set(paths(tree)) == {(12,), (10,), (12, 12), (10, 12), (12, 10)}
    assert exp(paths(tree)[(12, 10)]) == pytest.approx(0.4 * 0.375)


def test_improbable_rows_are_left_out() -> None:
    tree = counting((Guess("a", 0.5, {10: 0.999, 11: 0.001}),)).grow(
        make_sequence([5]), 0, 50, 1000
    )
    assert tree is not None
    assert min(tree.scores) >= log(MIN_PROBABILITY) > min(tree.scores) + log(0.5)
    assert leaves(tree) == [(10,) * 9]


def test_there_is_no_tree_without_guesses_or_room() -> None:
    sequence = make_sequence([5])
    assert counting(()).grow(sequence, 0, depth=4, rows=10) is None
    assert counting((Guess("a", 0.5, {}),)).grow(sequence, 0, depth=4, rows=10) is None
    assert counting().grow(sequence, 0, depth=4, rows=1) is None
    assert counting().grow(sequence, 0, depth=0, rows=10) is None
    assert counting().grow(make_sequence([5], max_tokens=1), 0, depth=4, rows=10) is None


def test_a_token_that_ends_the_sequence_has_no_children() -> None:
    sequence = make_sequence([EOS])
    search = counting((Guess("a", 0.9, {EOS: 1.0}),))
    assert leaves(search.grow(sequence, 0, depth=4, rows=10)) == [(EOS,)]


def test_guesses_are_counted_along_the_emitted_tokens() -> None:
    search, sequence = counting(), make_sequence([5])
    search.grow(sequence, 0, depth=4, rows=30)
    sequence.tokens += [12, 12, 99, 10, 10, 10]  # the last three are outside the tree
    search.grow(sequence, 0, depth=4, rows=30)
    rates = HitRates()
    for token in (12, 12, 99):
        rates.record(GUESSES, token)
    assert [search.rates.estimate_rate(guess) for guess in GUESSES] == [
        rates.estimate_rate(guess) for guess in GUESSES
    ]


def test_a_tree_is_counted_once_and_not_after_a_release() -> None:
    search, sequence = counting(), make_sequence([5])
    search.grow(sequence, 0, depth=4, rows=30)
    sequence.tokens.append(12)
    assert search.grow(sequence, 0, depth=4, rows=1) is None
    rate = search.rates.estimate_rate(GUESSES[0])
    search.grow(sequence, 0, depth=4, rows=30)
    search.grow(sequence, 0, depth=4, rows=30)
    search.release(sequence)
    sequence.tokens.append(12)
    search.grow(sequence, 0, depth=4, rows=30)
    assert search.rates.estimate_rate(GUESSES[0]) == rate < GUESSES[0].prior


@given(
    tables=st.lists(
        st.lists(
            st.tuples(st.floats(0.0, 1.0), st.lists(st.integers(0, 5), min_size=1, unique=True)),
            max_size=3,
        ),
        min_size=1,
        max_size=4,
    ),
    depth=st.integers(0, 6),
    rows=st.integers(1, 30),
    emitted=st.lists(st.integers(0, 5), max_size=8),
)
def test_trees_keep_their_bounds_with_any_guesses(
    tables: list[list[tuple[float, list[int]]]], depth: int, rows: int, emitted: list[int]
) -> None:
    def guesses(state: int) -> list[Guess]:
        made, taken = [], set[int]()
        for kind, (prior, tokens) in enumerate(tables[state % len(tables)]):
            fresh = [token for token in tokens if token not in taken]
            taken.update(fresh)
            made.append(Guess(kind, prior, {token: 1 / len(fresh) for token in fresh}))
        return made

    search = BestFirstSearch("test", guesses, lambda state, token: state + token)
    sequence = make_sequence([3])
    for token in [4, *emitted]:
        check(search.grow(sequence, 0, depth, rows), sequence, depth, rows, "test")
        sequence.tokens.append(token)


texts = st.lists(st.integers(0, 3), max_size=50)


@given(text=texts, cuts=st.lists(st.integers(0, 50)), tail=texts, places=st.integers(1, 5))
def test_the_index_finds_the_matches_of_a_slow_search(
    text: list[int], cuts: list[int], tail: list[int], places: int
) -> None:
    index = NgramIndex()
    for cut in sorted(cut for cut in cuts if cut < len(text)):
        index.update(text[:cut])
    index.update(text)
    expected = set()
    for n in LENGTHS:
        ends = [p for p in range(n, len(text)) if n <= len(tail) and text[p - n : p] == tail[-n:]]
        expected |= {Match(place, _count_agreeing(text[:place], tail)) for place in ends[-places:]}
    found = index.matches(text, tail, places)
    assert set(found) == expected and len(found) == len(expected)
    assert found == sorted(found, key=lambda match: (-match.length, -match.place))


def _count_agreeing(text: list[int], tail: list[int]) -> int:
    most = min(len(text), len(tail), LONGEST)
    return max(n for n in range(most + 1) if text[len(text) - n :] == tail[len(tail) - n :])


def test_short_matches_can_be_left_out() -> None:
    index = NgramIndex()
    text = [3, 4, 5, 9, 4, 6, 0]
    index.update(text)
    assert index.matches(text, [3, 4], 4) == [Match(2, 2), Match(5, 1)]
    assert index.matches(text, [3, 4], 4, shortest=2) == [Match(2, 2)]


def test_all_matches_of_a_kind_make_one_guess() -> None:
    text = [10, 11, 10, 12, 13]
    matches = [Match(0, 9), Match(1, 8), Match(2, 8), Match(3, 2), Match(2, 1), Match(4, 1)]
    priors = {6: 0.9, 2: 0.5, 1: 0.4}
    guesses = guess_from_matches(matches, lambda place: text[place], priors)
    assert [(guess.kind, guess.prior) for guess in guesses] == [(6, 0.9), (2, 0.5), (1, 0.4)]
    whole = 1 + 1 / 2 + 1 / 3
    assert guesses[0].shares == pytest.approx({10: (1 + 1 / 3) / whole, 11: 1 / 2 / whole})
    assert guesses[1].shares == {12: 1.0}
    assert guesses[2].shares == {13: 1.0}  # 10 is in an earlier guess
    assert all(isclose(sum(guess.shares.values()), 1) for guess in guesses)


def test_a_match_at_the_end_of_the_text_makes_no_guess() -> None:
    assert guess_from_matches([Match(9, 3)], lambda place: None, {3: 0.5}) == []
