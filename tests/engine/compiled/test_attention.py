"""Tests of attention in the order of positions: a row's bits depend only on what the row sees."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.compiled.attention import BLOCK, Columns
from engine.compiled.compiler import switched_off
from engine.model.ordered import find_columns
from engine.model.segment import Reach, Segment
from tests.engine.attention_layers import (
    FIRST,
    LENGTH,
    PARENTS,
    PATH,
    WINDOWS,
    Layer,
    chain,
    softmax,
    tree,
)


def columns(segment: Segment, reach: Reach, first: int = 0, stop: int | None = None) -> Columns:
    return find_columns(segment, range(first, segment.count if stop is None else stop), reach)


LAYERS = [
    Layer(),
    Layer(kv_heads=1, group=1, dim=8, value_dim=8),
    Layer(kv_heads=1, group=7, dim=20, value_dim=6),  # widths that no vector divides
    Layer(kv_heads=3, group=1, dim=24, value_dim=40, softcap=3.0),
    Layer(dtype=torch.bfloat16, has_sinks=True),
    Layer(dtype=torch.float16, dim=33, value_dim=17),
    Layer(group=5, softcap=0.5, has_sinks=True),
]


@pytest.mark.parametrize("reach", WINDOWS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_compiled_code_and_torch_give_the_same_bits_and_the_softmax(
    layer: Layer, reach: Reach
) -> None:
    memory, queries = layer.memory(), layer.queries()
    tiles = [
        (queries, columns(chain(0, LENGTH), reach)),
        (queries[:1], columns(chain(0, 1), reach)),
        (queries[:10], columns(tree(torch.arange(FIRST + len(PARENTS))), reach)),
    ]
    for query, seen in tiles:
        found = layer.attend(query, memory, seen)
        with switched_off():
            assert torch.equal(found, layer.attend(query, memory, seen))
        want = softmax(layer, query, memory, seen)
        torch.testing.assert_close(found.double(), want, rtol=1e-5, atol=1e-5)


def by_splits(layer: Layer, reach: Reach, edges: Sequence[int]) -> Tensor:
    """Return the output of a text that is computed in passes which end at these positions."""
    parts = []
    for start, stop in zip([0, *edges], [*edges, LENGTH], strict=True):
        seen = columns(chain(start, stop), reach)
        parts.append(layer.attend(layer.queries()[start:stop], layer.memory(), seen))
    return torch.cat(parts)


def by_tiles(layer: Layer, reach: Reach, size: int) -> Tensor:
    """Return the output of a text that is computed in one pass of tiles of this size."""
    parts = []
    for first in range(0, LENGTH, size):
        seen = columns(chain(0, LENGTH), reach, first, min(first + size, LENGTH))
        parts.append(layer.attend(layer.queries()[first : first + size], layer.memory(), seen))
    return torch.cat(parts)


def in_other_slots(layer: Layer, reach: Reach) -> Tensor:
    """Return the output of a text whose keys and values are stored in another order."""
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(5))
    memory = [part[order] for part in layer.memory()]
    seen = columns(chain(0, LENGTH, slots=order.argsort()), reach)
    return layer.attend(layer.queries(), memory, seen)


SPLITS = [[1], [63], [BLOCK], [BLOCK + 1], [2 * BLOCK - 1, 2 * BLOCK], list(range(1, LENGTH))]


@pytest.mark.parametrize("reach", WINDOWS, ids=str)
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[4], LAYERS[6]], ids=str)
def test_passes_tiles_and_slots_change_no_bit(layer: Layer, reach: Reach) -> None:
    want = by_splits(layer, reach, [])
    for edges in SPLITS:
        assert torch.equal(by_splits(layer, reach, edges), want), edges
    for size in (1, 10, 64):
        assert torch.equal(by_tiles(layer, reach, size), want), size
    assert torch.equal(in_other_slots(layer, reach), want)


@pytest.mark.parametrize("reach", WINDOWS, ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_path_of_a_tree_has_the_bits_of_the_same_text(layer: Layer, reach: Reach) -> None:
    memory, queries = layer.memory(), layer.queries()
    stop = FIRST + len(PATH)
    want = layer.attend(queries[FIRST:stop], memory, columns(chain(FIRST, stop), reach))
    # Other nodes have the keys and queries of other tokens, which are later in the text.
    tokens = torch.arange(len(PARENTS)) + stop
    tokens[list(PATH)] = torch.arange(FIRST, stop)
    seen = columns(tree(torch.cat([torch.arange(FIRST), tokens])), reach)
    found = layer.attend(queries[tokens], memory, seen)
    assert torch.equal(found[list(PATH)], want)


@pytest.mark.parametrize("count", [2, 3])
def test_threads_change_no_bit(count: int, threads: None) -> None:
    layer = Layer(kv_heads=16, group=1, dim=32, value_dim=32)
    seen = columns(chain(0, LENGTH), Reach())
    torch.set_num_threads(1)
    want = layer.attend(layer.queries(), layer.memory(), seen)
    torch.set_num_threads(count)
    assert torch.equal(layer.attend(layer.queries(), layer.memory(), seen), want)


@pytest.mark.parametrize("reach", WINDOWS[1:], ids=str)
def test_keys_that_no_row_sees_are_not_read(reach: Reach) -> None:
    layer, rows = Layer(), slice(140, LENGTH)
    seen, memory = columns(chain(rows.start, LENGTH), reach), layer.memory()
    want = layer.attend(layer.queries()[rows], memory, seen)
    for part in memory:
        part[: seen.low.min()] = torch.nan
    assert torch.equal(layer.attend(layer.queries()[rows], memory, seen), want)


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefix": np.arange(1, LENGTH + 1)},
        {"prefix": np.arange(LENGTH) - 1},
        {"high": np.arange(1, LENGTH + 1)},
        {"low": np.arange(LENGTH) - 1},
        {"visible": np.empty((3, 0), np.bool_)},
    ],
    ids=str,
)
def test_places_outside_the_memory_are_refused(wrong: dict[str, Any]) -> None:
    layer, seen = Layer(), columns(chain(0, LENGTH), Reach())
    with pytest.raises(AssertionError):
        layer.attend(layer.queries(), layer.memory(), replace(seen, **wrong))
