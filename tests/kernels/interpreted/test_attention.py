"""Tests of attention on CUDA devices in the interpreter."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from engine.model.ordered import find_paths
from engine.model.segment import Reach
from engine.triton_kernels import attention
from engine.triton_kernels.attention import CHUNK, attend
from tests.engine.attention_layers import PARENTS, PATH, Layer, chain, tree
from tests.kernels.attention_checks import (
    CPU,
    EQUAL,
    LENGTH,
    REACHES,
    ROUNDED,
    TEXT,
    TREE,
    check_bits,
    check_rounding,
    run,
)


@pytest.mark.parametrize(("layer", "reach"), ROUNDED, ids=str)
def test_the_output_is_that_of_the_cpu_within_one_rounding(layer: Layer, reach: Reach) -> None:
    check_rounding(layer, reach, CPU)


@pytest.mark.parametrize(("layer", "reach"), EQUAL, ids=str)
def test_a_row_has_the_same_bits_in_any_batch_tree_and_cache(
    layer: Layer, reach: Reach, dot_row_by_row: None
) -> None:
    check_bits(layer, reach, CPU)


@pytest.mark.parametrize("reach", REACHES[:2], ids=str)
def test_keys_that_a_row_does_not_see_are_not_read(reach: Reach) -> None:
    layer, memory = TEXT, TEXT.memory()
    segment = tree(torch.arange(TREE + len(PARENTS)), TREE)
    query = layer.queries()[: len(PARENTS)]
    wanted = run(layer, reach, segment, query, memory)
    paths = find_paths(segment, range(segment.count), reach)
    others = [node for node in range(len(PARENTS)) if node not in PATH]
    for part in memory:
        part[: paths.first_seen()] = torch.nan
        part[TREE + len(PARENTS) :] = torch.nan
        part[[TREE + node for node in others]] = 1000.0
    found = run(layer, reach, segment, query, memory)
    assert torch.equal(found[list(PATH)], wanted[list(PATH)])


def test_queries_may_have_any_layout() -> None:
    layer, segment = TEXT, chain(60, 70)
    memory, query = layer.memory(), layer.queries()[:10]
    wanted = run(layer, Reach(), segment, query, memory)
    by_head = query.transpose(0, 1).contiguous().transpose(0, 1)
    by_value = query.transpose(1, 2).contiguous().transpose(1, 2)
    for other in (by_head, by_value):
        assert torch.equal(run(layer, Reach(), segment, other, memory), wanted)


@pytest.mark.parametrize("is_tree", [False, True])
def test_rows_that_are_computed_in_parts_have_the_same_bits(
    is_tree: bool, dot_row_by_row: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, count = TEXT, len(PARENTS)
    whole = torch.arange(TREE + count)
    segment = tree(whole, TREE) if is_tree else chain(TREE, TREE + count)
    memory, query = layer.memory(), layer.queries()[:count]
    wanted = run(layer, Reach(), segment, query, memory)
    chunks, heads = 2, layer.kv_heads * layer.group
    monkeypatch.setattr(attention, "MAX_SUMS", 3 * chunks * heads * layer.value_dim)
    assert torch.equal(run(layer, Reach(), segment, query, memory), wanted)


@pytest.mark.parametrize(
    "wrong",
    [
        {"positions": torch.arange(9)},
        {"end": LENGTH + 1},
        {"base": 1},
        {"own": torch.zeros(len(PARENTS), 3, dtype=torch.int64)},
        {"own": None, "shared": torch.arange(CHUNK)},
    ],
    ids=str,
)
def test_places_outside_the_memory_are_refused(wrong: dict[str, Any]) -> None:
    segment = tree(torch.arange(TREE + len(PARENTS)), TREE)
    paths = replace(find_paths(segment, range(segment.count), Reach()), **wrong)
    query = TEXT.queries()[: len(PARENTS)]
    with pytest.raises(AssertionError):
        attend(query, TEXT.memory(), TEXT.shapes, paths, **TEXT.options())
