"""Checks of the invariants of an engine's pages and drafts, between steps and after the last."""

from collections.abc import Sequence
from math import exp
from typing import Any

import pytest

from engine.drafting.growth import Growth
from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.kv.stored_states import StoredState
from engine.runtime.engine import Engine
from engine.sequences.sequence import TokenSequence
from tests.engine.page_traffic import check_pages


def check_books(made: Engine) -> None:
    """Check that each page has one state, and that each growth begins at its sequence's last token.

    Raise AssertionError otherwise.
    """
    running = made._scheduler.running
    tables = {id(made._cache): [sequence.pages for sequence in running]}
    model = made._drafting._model
    if model is not None:
        scratch = [kept._table for kept in model._scratch.values()]
        tables.setdefault(id(model.caches.cache), []).extend([*scratch, *own_tables(made).values()])
        assert model._scratch.keys() | own_tables(made).keys() <= set(running)
    for cache in caches(made):
        check_pages(cache, tables[id(cache)])
    assert all(sequence.table is None for sequence in made._scheduler.paused)
    check_states(made._cache, [sequence.pages for sequence in running])
    if made._cache.states is not None:
        assert all(sequence.pages.state is not None for sequence in running)
    if model is not None and not model.caches.is_shared:
        check_states(model.caches.cache, [*own_tables(made).values()])
    check_nodes(made)
    assert len(running) <= made._scheduler.max_sequences
    assert made._drafting._growths.keys() <= set(running)
    for sequence, growth in made._drafting._growths.items():
        assert growth.sequence is sequence
        assert growth.root.position == len(sequence.tokens) - 1
        assert growth.root.token == sequence.tokens[-1]
        table = own_tables(made).get(sequence)
        assert table is None or table.length <= growth.root.position, (
            "the root has a slot in the draft's own cache"
        )
        check_growth(growth)
        check_slots(made, growth)


def check_idle(made: Engine) -> None:
    """Check that an engine without requests holds nothing. Raise AssertionError otherwise."""
    for cache in caches(made):
        assert cache.num_free_pages + cache.num_withdrawn == cache.num_pages
    for cache in caches(made):
        check_states(cache, [])
        assert not any(cache._references)
    drafting = made._drafting
    assert not drafting._growths and not own_tables(made)
    assert drafting._model is None or not drafting._model._scratch
    check_nodes(made)
    for lookup in drafting._lookups:
        for kept in ("_pasts", "_pointers"):
            assert not getattr(lookup, kept, None), (lookup.name, kept)
        assert not getattr(getattr(lookup, "_search", None), "_proposed", None), lookup.name
    assert not made._requests._by_id and made._scheduler.num_waiting == 0
    assert not list(made._scheduler.all_sequences())


def check_states(cache: KVCache, tables: Sequence[PageTable]) -> None:
    """Check that each state has one owner, these tables or a stored prefix, or is free.

    Raise AssertionError otherwise.
    """
    if cache.states is None:
        return
    states, own = cache.states, [table.state for table in tables if table.state is not None]
    kept = [stored for found in stored_states(cache).values() for stored in found]
    slots = [state.slot for state in own] + [stored.slot for stored in kept]
    slots += [slot for state in own for slot in state.captures.values()]
    assert len(own) == states.num_stashes - len(states._free_stashes)
    assert sorted([*slots, *states._free_states]) == list(range(states.num_states))


def check_nodes(made: Engine) -> None:
    """Check that each drafted row has memory in recurrent layers. Raise AssertionError otherwise.

    Other memory of the kind has to be free.
    """
    model = made._drafting._model
    if model is None or (memory := model.caches.nodes) is None:
        return
    growths = made._drafting._growths.values()
    ran = [node.slot for growth in growths for node in growth.ran if node.slot is not None]
    pending = [slot for scratch in model._scratch.values() for slot in scratch.pending]
    assert model.unfinished is not None or not pending
    assert sorted(memory._numbers) == sorted([*ran, *pending])
    numbers = [*memory._numbers.values(), *memory._free]
    assert sorted(numbers) == list(range(memory.num_nodes))


def caches(made: Engine) -> list[KVCache]:
    """Return the target's cache, and that of the draft if it has its own."""
    model = made._drafting._model
    if model is None or model.caches.cache is made._cache:
        return [made._cache]
    return [made._cache, model.caches.cache]


def stored_states(cache: KVCache) -> dict[int, list[StoredState]]:
    """Return the states of stored prefixes, by the last full page of each."""
    stored = cache._stored
    assert stored is not None, "there are recurrent layers"
    return stored._by_parent


def own_tables(made: Engine) -> dict[TokenSequence, PageTable]:
    """Return the page tables of the draft's own cache, by sequence."""
    caches: Any = made._drafting._model and made._drafting._model.caches
    return getattr(caches, "_tables", {})


def check_growth(growth: Growth) -> None:
    """Check the figures of a growth against its nodes. Raise AssertionError if they differ."""
    nodes = list(growth._walk(growth.root))
    assert growth.root.parent is None
    for node in nodes:
        assert node is growth.root or node.position <= growth.last_position
        for token, child in node.children.items():
            assert child.token == token and child.parent is node
            assert child.position == node.position + 1
            assert child.score < node.score, "scores fall along a path"
            assert node.slot is not None or child.slot is None, "a child ran before its parent"
    below = sorted((node.score - growth.root.score for node in nodes[1:]), reverse=True)
    best = below[: growth.budget - 1]
    assert len(growth) == 1 + len(best)
    assert sorted(growth._best, reverse=True) == best
    assert growth.expected == pytest.approx(1 + sum(map(exp, best)), abs=1e-6)
    assert {id(n) for n in growth.ran} == {id(n) for n in nodes if n.slot is not None}
    waiting = [id(node) for cost, _, node in growth._frontier if node.slot is None]
    assert all(any(node is other for other in nodes) for _, _, node in growth._frontier)
    live = [id(n) for cost, _, n in growth._frontier if n.slot is None and -cost == n.score]
    assert len(live) == len(set(live)), "a node is on the frontier twice"
    assert set(live) == set(waiting)


def check_slots(made: Engine, growth: Growth) -> None:
    """Check that each scratch slot is free or has one node. Raise AssertionError otherwise."""
    model = made._drafting._model
    scratch = None if model is None else model._scratch.get(growth.sequence)
    used = [node.slot for node in growth.ran if node.slot is not None]
    if scratch is None:
        assert not used
        return
    all_slots = {page * PAGE + i for page in scratch._table.pages for i in range(PAGE)}
    assert sorted([*used, *scratch._free]) == sorted(all_slots)
