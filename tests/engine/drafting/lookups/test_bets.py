"""Bets, what is learned of them, the trees grown out of them; and the places of n-grams."""

from collections.abc import Sequence as Seq
from math import exp, isclose, log

import pytest
from hypothesis import given, strategies as st

from engine.drafting.lookups.bets import LEAST, MEMORY, SURE, Bet, Gambler, Rates
from engine.drafting.lookups.suffixes import LENGTHS, LONGEST, Match, Suffixes, bets_on
from tests.engine.lookups import check, leaves, paths
from tests.engine.sequence_makers import EOS, make_sequence

BETS = (Bet("a", 0.5, {10: 0.75, 11: 0.25}), Bet("b", 0.8, {12: 1.0}))


def counting(bets: Seq[Bet] = BETS) -> Gambler[int]:
    """Bets the same everywhere; the state is the depth."""
    return Gambler("test", lambda depth: bets, lambda depth, token: depth + 1)


def test_a_bet_is_tried_where_those_before_it_lost() -> None:
    chances = dict(Rates().chances(BETS))
    assert chances == pytest.approx({10: 0.5 * 0.75, 11: 0.5 * 0.25, 12: 0.5 * 0.8})


def test_the_chances_of_all_tokens_are_at_most_one() -> None:
    bets = [Bet(kind, 1.0, {kind: 1.0}) for kind in range(50)]
    chances = Rates().chances(bets)
    assert sum(chance for _, chance in chances) <= 1
    assert chances[0] == (0, SURE)


def test_rates_become_what_was_seen() -> None:
    rates = Rates()
    for trial in range(100):
        rates.settle(BETS, 10 if trial % 10 == 0 else 12)
    assert rates.rate(BETS[0]) == pytest.approx(0.1, abs=0.03)
    assert rates.rate(BETS[1]) > 0.95  # tried where the first had lost only
    assert rates.rate(Bet("c", 0.3, {})) == 0.3


def test_a_bet_behind_one_that_won_was_not_tried() -> None:
    rates = Rates()
    rates.settle(BETS, 11)
    assert rates.rate(BETS[0]) > 0.5
    assert rates.rate(BETS[1]) == BETS[1].prior


def test_old_trials_fade() -> None:
    rates = Rates()
    for _ in range(10_000):
        rates.settle(BETS, 10)
    for _ in range(int(2 * MEMORY)):
        rates.settle(BETS, 12)
    assert rates.rate(BETS[0]) < 0.2


def test_a_tree_has_the_best_rows_and_their_scores() -> None:
    sequence = make_sequence([5])
    tree = counting().grow(sequence, 0, 2, 6)
    check(tree, sequence, 2, 6, "test")
    assert set(paths(tree)) == {(12,), (10,), (12, 12), (10, 12), (12, 10)}
    assert exp(paths(tree)[(12, 10)]) == pytest.approx(0.4 * 0.375)


def test_rows_that_hardly_ever_come_true_are_left_out() -> None:
    tree = counting((Bet("a", 0.5, {10: 0.999, 11: 0.001}),)).grow(make_sequence([5]), 0, 50, 1000)
    assert tree is not None
    assert min(tree.scores) >= log(LEAST) > min(tree.scores) + log(0.5)
    assert leaves(tree) == [(10,) * 9]


def test_without_bets_or_room_there_is_no_tree() -> None:
    sequence = make_sequence([5])
    assert counting(()).grow(sequence, 0, 4, 10) is None
    assert counting((Bet("a", 0.5, {}),)).grow(sequence, 0, 4, 10) is None
    assert counting().grow(sequence, 0, 4, 1) is None
    assert counting().grow(sequence, 0, 0, 10) is None
    assert counting().grow(make_sequence([5], max_tokens=1), 0, 4, 10) is None


def test_nothing_grows_behind_what_ends_the_sequence() -> None:
    sequence = make_sequence([EOS])
    gambler = counting((Bet("a", 0.9, {EOS: 1.0}),))
    assert leaves(gambler.grow(sequence, 0, 4, 10)) == [(EOS,)]


def test_bets_are_settled_on_the_way_the_sequence_went() -> None:
    gambler, sequence = counting(), make_sequence([5])
    gambler.grow(sequence, 0, 4, 30)
    sequence.tokens += [12, 12, 99, 10, 10, 10]  # the last three came behind the tree
    gambler.grow(sequence, 0, 4, 30)
    rates = Rates()
    for token in (12, 12, 99):
        rates.settle(BETS, token)
    assert [gambler.rates.rate(bet) for bet in BETS] == [rates.rate(bet) for bet in BETS]


def test_a_tree_is_settled_once_and_not_after_its_sequence_left() -> None:
    gambler, sequence = counting(), make_sequence([5])
    gambler.grow(sequence, 0, 4, 30)
    sequence.tokens.append(12)
    assert gambler.grow(sequence, 0, 4, 1) is None
    rate = gambler.rates.rate(BETS[0])
    gambler.grow(sequence, 0, 4, 30)
    gambler.grow(sequence, 0, 4, 30)
    gambler.release(sequence)
    sequence.tokens.append(12)
    gambler.grow(sequence, 0, 4, 30)
    assert gambler.rates.rate(BETS[0]) == rate < BETS[0].prior


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
def test_trees_hold_their_bounds_whatever_the_bets(
    tables: list[list[tuple[float, list[int]]]], depth: int, rows: int, emitted: list[int]
) -> None:
    def bets(state: int) -> list[Bet]:
        made, taken = [], set[int]()
        for kind, (prior, tokens) in enumerate(tables[state % len(tables)]):
            fresh = [token for token in tokens if token not in taken]
            taken.update(fresh)
            made.append(Bet(kind, prior, {token: 1 / len(fresh) for token in fresh}))
        return made

    gambler = Gambler("test", bets, lambda state, token: state + token)
    sequence = make_sequence([3])
    for token in [4, *emitted]:
        check(gambler.grow(sequence, 0, depth, rows), sequence, depth, rows, "test")
        sequence.tokens.append(token)


texts = st.lists(st.integers(0, 3), max_size=50)


@given(text=texts, cuts=st.lists(st.integers(0, 50)), tail=texts, places=st.integers(1, 5))
def test_matches_are_those_a_slow_search_finds(
    text: list[int], cuts: list[int], tail: list[int], places: int
) -> None:
    index = Suffixes()
    for cut in sorted(cut for cut in cuts if cut < len(text)):
        index.update(text[:cut])
    index.update(text)
    expected = set()
    for n in LENGTHS:
        ends = [p for p in range(n, len(text)) if n <= len(tail) and text[p - n : p] == tail[-n:]]
        expected |= {Match(place, _agreement(text[:place], tail)) for place in ends[-places:]}
    found = index.matches(text, tail, places)
    assert set(found) == expected and len(found) == len(expected)
    assert found == sorted(found, key=lambda match: (-match.length, -match.place))


def _agreement(text: list[int], tail: list[int]) -> int:
    most = min(len(text), len(tail), LONGEST)
    return max(n for n in range(most + 1) if text[len(text) - n :] == tail[len(tail) - n :])


def test_short_matches_can_be_left_out() -> None:
    index = Suffixes()
    text = [3, 4, 5, 9, 4, 6, 0]
    index.update(text)
    assert index.matches(text, [3, 4], 4) == [Match(2, 2), Match(5, 1)]
    assert index.matches(text, [3, 4], 4, shortest=2) == [Match(2, 2)]


def test_one_kind_of_match_makes_one_bet() -> None:
    text = [10, 11, 10, 12, 13]
    matches = [Match(0, 9), Match(1, 8), Match(2, 8), Match(3, 2), Match(2, 1), Match(4, 1)]
    priors = {6: 0.9, 2: 0.5, 1: 0.4}
    bets = bets_on(matches, lambda place: text[place], priors)
    assert [(bet.kind, bet.prior) for bet in bets] == [(6, 0.9), (2, 0.5), (1, 0.4)]
    whole = 1 + 1 / 2 + 1 / 3
    assert bets[0].shares == pytest.approx({10: (1 + 1 / 3) / whole, 11: 1 / 2 / whole})
    assert bets[1].shares == {12: 1.0}
    assert bets[2].shares == {13: 1.0}  # 10 is in a better bet
    assert all(isclose(sum(bet.shares.values()), 1) for bet in bets)


def test_a_match_whose_text_has_ended_bets_on_nothing() -> None:
    assert bets_on([Match(9, 3)], lambda place: None, {3: 0.5}) == []
