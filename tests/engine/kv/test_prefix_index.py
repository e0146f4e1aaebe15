"""Tests of the prefix index, against a search through all pages."""

import random

import pytest

from engine.kv.prefix_index import PrefixIndex, Tokens
from tests.engine.page_traffic import common_length

PAGE = 4
HOST = 1000  # the first page number on the host


def index_of(*pages: tuple[int, Tokens]) -> PrefixIndex:
    """Return an index of these pages, all of them children of parent 0."""
    index = PrefixIndex(PAGE, HOST)
    for page, tokens in pages:
        index.add(0, tokens, page)
    return index


def test_full_pages_are_walked_and_the_last_token_is_left_out() -> None:
    index = index_of((7, (1, 2, 3, 4)))
    index.add(index.serial(7), (5, 6, 7, 8), 9)
    assert list(index.walk([1, 2, 3, 4, 5, 6, 7, 8, 9], 0)) == [7, 9]
    assert list(index.walk([1, 2, 3, 4, 5, 6, 7, 8], 0)) == [7]
    assert list(index.walk([1, 2, 3, 5, 5, 6, 7, 8, 9], 0)) == []
    assert list(index.walk([1, 2, 3, 4, 5, 6, 7, 8, 9], -1)) == []


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
def test_the_page_with_the_longest_common_prefix_is_found(
    tokens: Tokens, found: tuple[int, int] | None
) -> None:
    index = index_of((5, (1, 2, 3, 4)), (6, (1, 3)), (8, (2,)))
    if tokens == (1, 0):  # both pages that begin with 1 have one common token
        assert index.find_longest_match(0, tokens) in {(5, 1), (6, 1)}
    else:
        assert index.find_longest_match(0, tokens) == found
    assert index.find_longest_match(1, tokens) is None, "another parent has no pages"


@pytest.mark.parametrize("host_first", [True, False])
def test_of_equally_good_pages_one_on_the_device_is_preferred(host_first: bool) -> None:
    pages = [(HOST + 1, (1, 2, 3, 4)), (5, (1, 2, 5, 6))]
    index = index_of(*(pages if host_first else pages[::-1]))
    assert index.find_longest_match(0, (1, 2, 4)) == (5, 2)
    assert index.find_longest_match(0, (1, 2, 3)) == (HOST + 1, 3)


def test_a_renamed_page_is_found_under_its_new_number() -> None:
    index = index_of((5, (1, 2, 3, 4)))
    serial = index.serial(5)
    index.rename(5, HOST)
    assert 5 not in index and HOST in index
    assert index.find_longest_match(0, (1, 2)) == (HOST, 2)
    assert index.serial(HOST) == serial, "its children still refer to it"
    index.remove(HOST)
    assert index.find_longest_match(0, (1, 2)) is None and HOST not in index


@pytest.mark.parametrize("page", [5, HOST])
def test_covering_pages_and_proper_prefixes_are_found(page: int) -> None:
    index = index_of((page, (1, 2, 3)))
    assert index.find_covering(0, (1, 2)) == index.find_covering(0, (1, 2, 3)) == page
    assert index.find_covering(0, (1, 2, 3, 4)) is index.find_covering(0, (1, 3)) is None
    assert index.find_prefix(0, (1, 2, 3, 4)) == page
    assert index.find_prefix(0, (1, 2, 3)) is index.find_prefix(0, (1, 2, 4, 4)) is None


@pytest.mark.parametrize("seed", range(4))
def test_bisection_finds_what_a_search_through_all_pages_finds(seed: int) -> None:
    rng = random.Random(seed)
    index, pages = PrefixIndex(PAGE, HOST), dict[int, Tokens]()

    def draw() -> Tokens:
        return tuple(rng.choices(range(3), k=rng.randrange(1, PAGE + 1)))

    for number in range(300):
        tokens, wanted = draw(), draw()
        shorter = [p for p, own in pages.items() if own == tokens[: len(own)] != tokens]
        longer = [p for p, own in pages.items() if own[: len(tokens)] == tokens]
        assert index.find_prefix(0, tokens) == (shorter[0] if shorter else None)
        covering = index.find_covering(0, tokens)
        assert covering in longer if longer else covering is None
        if not longer:
            for page in shorter:
                index.remove(page)
                del pages[page]
            page = number + HOST * rng.randrange(2)
            index.add(0, tokens, page)
            pages[page] = tokens
        elif rng.random() < 0.3:
            page = rng.choice(list(pages))
            index.remove(page)
            del pages[page]
        agreeing = {page: common_length(own, wanted) for page, own in pages.items()}
        best = max(agreeing.values(), default=0)
        found = index.find_longest_match(0, wanted)
        assert (found[1] if found else 0) == best
        if found:
            equal = [page for page, count in agreeing.items() if count == best]
            assert found[0] in equal
            assert found[0] < HOST or min(equal) >= HOST, "a page on the device has the same length"


def test_many_pages_of_one_parent_are_searched_by_bisection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = [(page, (1, 1, page)) for page in range(500)]
    index = index_of(*pages)
    compared = []

    def counted_length(one: Tokens, other: Tokens) -> int:
        compared.append(one)
        return common_length(one, other)

    monkeypatch.setattr("engine.kv.prefix_index._common_length", counted_length)
    assert index.find_longest_match(0, (1, 1, 321, 4)) == (321, 3)
    assert len(compared) <= 4
