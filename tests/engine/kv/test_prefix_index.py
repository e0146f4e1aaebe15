"""Which page is found for which tokens, against a search through all of them."""

import random

import pytest

from engine.kv.prefix_index import PrefixIndex, Tokens
from tests.engine.page_traffic import num_agreeing

PAGE = 4
HOST = 1000  # pages from here on are the host's


def index(*pages: tuple[int, Tokens]) -> PrefixIndex:
    """Pages below the root."""
    made = PrefixIndex(PAGE, HOST)
    for page, tokens in pages:
        made.add(0, tokens, page)
    return made


def test_full_pages_are_walked_and_the_last_token_is_left_out() -> None:
    made = index((7, (1, 2, 3, 4)))
    made.add(made.serial(7), (5, 6, 7, 8), 9)
    assert list(made.walk([1, 2, 3, 4, 5, 6, 7, 8, 9], 0)) == [7, 9]
    assert list(made.walk([1, 2, 3, 4, 5, 6, 7, 8], 0)) == [7]
    assert list(made.walk([1, 2, 3, 5, 5, 6, 7, 8, 9], 0)) == []
    assert list(made.walk([1, 2, 3, 4, 5, 6, 7, 8, 9], -1)) == []


@pytest.mark.parametrize(
    ("tokens", "found"),
    [
        ((1, 2, 3), (5, 3)),
        ((1, 2, 9), (5, 2)),
        ((1, 3), (6, 2)),
        ((1, 3, 3, 3), (6, 2)),
        ((1, 0), (5, 1)),
        ((2, 2, 2), (8, 1)),
        ((3,), None),
        ((0, 1, 2), None),
        ((), None),
    ],
)
def test_the_page_that_agrees_longest_is_found(
    tokens: Tokens, found: tuple[int, int] | None
) -> None:
    made = index((5, (1, 2, 3, 4)), (6, (1, 3)), (8, (2,)))
    if tokens == (1, 0):  # all that begin with 1 agree alike
        assert made.longest(0, tokens) in {(5, 1), (6, 1)}
    else:
        assert made.longest(0, tokens) == found
    assert made.longest(1, tokens) is None, "other parents have other pages"


@pytest.mark.parametrize("host_first", [True, False])
def test_of_pages_that_agree_alike_the_devices_is_taken(host_first: bool) -> None:
    pages = [(HOST + 1, (1, 2, 3, 4)), (5, (1, 2, 5, 6))]
    made = index(*(pages if host_first else pages[::-1]))
    assert made.longest(0, (1, 2, 4)) == (5, 2)
    assert made.longest(0, (1, 2, 3)) == (HOST + 1, 3)


def test_what_has_moved_is_found_where_it_is() -> None:
    made = index((5, (1, 2, 3, 4)))
    serial = made.serial(5)
    made.rename(5, HOST)
    assert 5 not in made and HOST in made
    assert made.longest(0, (1, 2)) == (HOST, 2)
    assert made.serial(HOST) == serial, "its children still name it"
    made.remove(HOST)
    assert made.longest(0, (1, 2)) is None and HOST not in made


@pytest.mark.parametrize("page", [5, HOST])
def test_covered_tokens_and_their_beginnings_are_told(page: int) -> None:
    made = index((page, (1, 2, 3)))
    assert made.covering(0, (1, 2)) == made.covering(0, (1, 2, 3)) == page
    assert made.covering(0, (1, 2, 3, 4)) is made.covering(0, (1, 3)) is None
    assert made.beginning(0, (1, 2, 3, 4)) == page
    assert made.beginning(0, (1, 2, 3)) is made.beginning(0, (1, 2, 4, 4)) is None


@pytest.mark.parametrize("seed", range(4))
def test_the_sorted_search_finds_what_a_search_through_all_finds(seed: int) -> None:
    chance = random.Random(seed)
    made, pages = PrefixIndex(PAGE, HOST), dict[int, Tokens]()

    def draw() -> Tokens:
        return tuple(chance.choices(range(3), k=chance.randrange(1, PAGE + 1)))

    for number in range(300):
        tokens, wanted = draw(), draw()
        shorter = [p for p, own in pages.items() if own == tokens[: len(own)] != tokens]
        longer = [p for p, own in pages.items() if own[: len(tokens)] == tokens]
        assert made.beginning(0, tokens) == (shorter[0] if shorter else None)
        covering = made.covering(0, tokens)
        assert covering in longer if longer else covering is None
        if not longer:
            for page in shorter:
                made.remove(page)
                del pages[page]
            page = number + HOST * chance.randrange(2)
            made.add(0, tokens, page)
            pages[page] = tokens
        elif chance.random() < 0.3:
            page = chance.choice(list(pages))
            made.remove(page)
            del pages[page]
        agreeing = {page: num_agreeing(own, wanted) for page, own in pages.items()}
        best = max(agreeing.values(), default=0)
        found = made.longest(0, wanted)
        assert (found[1] if found else 0) == best
        if found:
            equal = [page for page, count in agreeing.items() if count == best]
            assert found[0] in equal
            assert found[0] < HOST or min(equal) >= HOST, "one on the device was as good"


def test_a_crowd_behind_one_parent_is_bisected(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = [(page, (1, 1, page)) for page in range(500)]
    made = index(*crowd)
    compared = []

    def counted(one: Tokens, other: Tokens) -> int:
        compared.append(one)
        return num_agreeing(one, other)

    monkeypatch.setattr("engine.kv.prefix_index._num_agreeing", counted)
    assert made.longest(0, (1, 1, 321, 4)) == (321, 3)
    assert len(compared) <= 4
