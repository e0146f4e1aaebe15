"""Tests of page hashes, of their names under a key, and of reports by difference."""

from hypothesis import given, settings, strategies as st

from cluster.page_hashes import PAGE_TOKENS, page_hashes
from cluster.report import PageChange, naming_key, page_name
from engine.kv.page_pool import PAGE

texts = st.tuples(st.integers(0, 4 * PAGE_TOKENS), st.integers(0, 4 * PAGE_TOKENS)).map(
    lambda sizes: [0] * sizes[0] + [1] * sizes[1]
)


def test_pages_have_as_many_tokens_as_those_of_the_cache() -> None:
    assert PAGE_TOKENS == PAGE


@settings(deadline=None, max_examples=40)
@given(texts, texts)
def test_equal_beginnings_have_equal_hashes_and_others_do_not(
    one: list[int], other: list[int]
) -> None:
    shared = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    if shared is None:
        shared = min(len(one), len(other))
    first, second = page_hashes(one), page_hashes(other)
    assert len(first) == len(one) // PAGE_TOKENS
    full = shared // PAGE_TOKENS
    assert first[:full] == second[:full]
    assert not set(first[full:]) & set(second[full:])


def test_the_same_tokens_after_another_beginning_are_another_page() -> None:
    page, other = [1] * PAGE_TOKENS, [2] * PAGE_TOKENS
    assert page_hashes(page + page)[1] != page_hashes(other + page)[1]


def test_a_page_has_another_name_under_each_key() -> None:
    (page,) = page_hashes(range(PAGE_TOKENS))
    names = {page_name(page, naming_key(secret)) for secret in ("", "one", "two")}
    assert len(names) == 3 and page in names


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.sets(st.integers(0, 5), max_size=4), st.booleans()), max_size=5))
def test_differences_add_up_to_what_is_held(steps: list[tuple[set[int], bool]]) -> None:
    known: set[bytes] = set()
    before: set[bytes] = set()
    for numbers, is_whole in steps:
        held = {bytes([number]) for number in numbers}
        change = (
            PageChange(added=held, is_whole=True)
            if is_whole
            else PageChange(added=held - before, dropped=before - held)
        )
        change.apply(known)
        assert known == held
        before = held
