"""Tests of attention in the order of positions: a row's bits depend only on what the row sees."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from engine.compiled.attention import BLOCK, Columns
from engine.compiled.compiler import switched_off
from engine.model.ordered import attend_in_order, find_columns
from engine.model.segment import Reach, Segment

LENGTH = 150  # tokens of a text: two whole blocks and a part
FIRST = 120  # the position of a tree's root
# The parent of each node. The path 0, 2, 4, 6, 7 has the tokens of the text.
PARENTS = (-1, 0, 0, 1, 2, 2, 4, 6, 6, 3)
PATH = (0, 2, 4, 6, 7)
WINDOWS = [Reach(), Reach(3), Reach(70), Reach(BLOCK), Reach(50, is_chunk=True)]


@dataclass(frozen=True)
class Layer:
    """The shapes and options of a layer, and random queries, keys and values of LENGTH tokens."""

    kv_heads: int = 2
    group: int = 2
    dim: int = 16
    value_dim: int = 16
    dtype: torch.dtype = torch.float32
    softcap: float | None = None
    has_sinks: bool = False
    length: int = LENGTH

    @property
    def shapes(self) -> tuple[torch.Size, torch.Size]:
        return torch.Size((self.kv_heads, self.dim)), torch.Size((self.kv_heads, self.value_dim))

    def _random(self, seed: int, *shape: int) -> Tensor:
        made = torch.Generator().manual_seed(seed)
        return (2 * torch.randn(*shape, generator=made)).to(self.dtype)

    def queries(self) -> Tensor:
        return self._random(1, self.length, self.kv_heads * self.group, self.dim)

    def memory(self) -> tuple[Tensor, Tensor]:
        """Return keys and values of as many slots as tokens; a slot is wider than it has to be."""
        width = self.kv_heads * max(self.dim, self.value_dim) + 3
        return self._random(2, self.length, width), self._random(3, self.length, width)

    def attend(self, query: Tensor, memory: Sequence[Tensor], columns: Columns) -> Tensor:
        sinks = self._random(4, self.kv_heads * self.group) if self.has_sinks else None
        return attend_in_order(
            query,
            memory,
            self.shapes,
            columns,
            scaling=self.dim**-0.5,
            softcap=self.softcap,
            sinks=sinks,
        )


def chain(start: int, stop: int, slots: Tensor | None = None) -> Segment:
    """Return the rows `start` to `stop` - 1 of a text."""
    own = torch.arange(stop) if slots is None else slots[:stop]
    return Segment(0, stop - start, start, own, torch.arange(start, stop), None, Event())


def tree(slots: Tensor) -> Segment:
    """Return the rows of a tree from FIRST on."""
    mask, depths = torch.eye(len(PARENTS), dtype=torch.bool), [0] * len(PARENTS)
    for node, parent in enumerate(PARENTS[1:], 1):
        mask[node] |= mask[parent]
        depths[node] = depths[parent] + 1
    return Segment(0, len(PARENTS), FIRST, slots, torch.tensor(depths) + FIRST, mask, Event())


def columns(segment: Segment, reach: Reach, first: int = 0, stop: int | None = None) -> Columns:
    return find_columns(segment, range(first, segment.count if stop is None else stop), reach)


def softmax(layer: Layer, query: Tensor, memory: Sequence[Tensor], seen: Columns) -> Tensor:
    """Return the attention output of a layer without a cap and sinks, by float64."""
    places = np.concatenate([seen.prefix, seen.others])
    number = np.arange(len(seen.prefix))
    low, high = seen.low[:, None], seen.high[:, None]
    visible = np.concatenate([(low <= number) & (number <= high), seen.visible], axis=1)
    keys, values = (
        part[places, : shape.numel()].double().view(-1, *shape).repeat_interleave(layer.group, 1)
        for part, shape in zip(memory, layer.shapes, strict=True)
    )
    scores = torch.einsum("rhd,nhd->hrn", query.double(), keys) * layer.dim**-0.5
    if layer.softcap is not None:
        scores = torch.tanh(scores / layer.softcap) * layer.softcap
    scores = scores.masked_fill(~torch.from_numpy(visible), -torch.inf)
    if layer.has_sinks:
        sinks = layer._random(4, len(scores)).double()[:, None, None]
        scores = torch.cat([scores, sinks.expand(-1, len(query), 1)], dim=-1)
    return torch.einsum("hrn,nhd->rhd", scores.softmax(-1)[..., : len(places)], values)


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
