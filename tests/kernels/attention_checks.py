"""Checks of attention on CUDA devices, for the interpreter and for a GPU."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from engine.model.ordered import find_columns, find_paths
from engine.model.segment import Reach, Segment
from engine.triton_kernels.attention import CHUNK, attend
from tests.engine.attention_layers import PARENTS, PATH, Layer, chain, softmax, tree

START, LENGTH = CHUNK - 5, CHUNK + 9  # texts whose last rows are in the second chunk
TREE = CHUNK - 4  # the position of the root of a tree that reaches into the second chunk
FAR = CHUNK + 4  # and of one whose rows see a whole chunk
TEXT = Layer(kv_heads=2, group=2, length=LENGTH)
ONE_HEAD = replace(TEXT, kv_heads=1)
CPU = torch.device("cpu")
REACHES = [Reach(), Reach(3), Reach(70), Reach(50, is_chunk=True)]


def run(
    layer: Layer,
    reach: Reach,
    segment: Segment,
    query: Tensor,
    memory: Sequence[Tensor],
    device: torch.device = CPU,
    **rows: int,
) -> Tensor:
    """Return what the kernels compute for the rows `first` to `stop` - 1 of a segment."""
    some = range(rows.get("first", 0), rows.get("stop", segment.count))
    moved = replace(
        segment,
        slots=segment.slots.to(device),
        positions=segment.positions.to(device),
        mask=None if segment.mask is None else segment.mask.to(device),
    )
    options = layer.options()
    if options["sinks"] is not None:
        options["sinks"] = options["sinks"].to(device)
    found = attend(
        query.to(device),
        [part.to(device) for part in memory],
        layer.shapes,
        find_paths(moved, some, reach),
        **options,
    )
    return found.cpu()


# The shapes of real models, with one or two heads of keys.
MODELS = [
    TEXT,
    replace(ONE_HEAD, dim=20, value_dim=6, group=7),  # widths that no power of two divides
    replace(ONE_HEAD, dim=8, value_dim=8, group=17),  # more heads of a key head than a tile has
    replace(TEXT, dtype=torch.bfloat16, dim=64, value_dim=64, group=8, has_sinks=True),  # gpt-oss
    replace(TEXT, dtype=torch.float16, dim=80, value_dim=80, group=1),  # phi-2
    replace(ONE_HEAD, dtype=torch.bfloat16, dim=96, value_dim=96, group=3),  # phi-3
    replace(ONE_HEAD, dtype=torch.bfloat16, dim=128, value_dim=128, group=7),  # qwen2
    replace(TEXT, dtype=torch.bfloat16, dim=192, value_dim=128, group=1),  # mimo_v2_flash
    replace(ONE_HEAD, dtype=torch.bfloat16, dim=256, value_dim=256, softcap=3.0),  # gemma2
    replace(ONE_HEAD, dtype=torch.float16, dim=512, value_dim=512),  # gemma4
    replace(ONE_HEAD, dtype=torch.bfloat16, dim=576, value_dim=512, group=2),  # deepseek_v3
    replace(ONE_HEAD, dim=256, value_dim=256, softcap=0.5, has_sinks=True),
]
ROUNDED = [*((layer, Reach()) for layer in MODELS), *((TEXT, reach) for reach in REACHES[1:])]
EQUAL = [
    (TEXT, Reach()),
    (TEXT, Reach(3)),
    (replace(ONE_HEAD, dtype=torch.bfloat16, group=7, softcap=3.0, has_sinks=True), Reach(70)),
    (
        replace(ONE_HEAD, dtype=torch.float16, dim=20, value_dim=40, group=17),
        Reach(50, is_chunk=True),
    ),
]


def check_rounding(layer: Layer, reach: Reach, device: torch.device) -> None:
    """Check that the output is that of the CPU within one rounding."""
    memory, own = layer.memory(), len(PARENTS)
    trees = [tree(torch.arange(root + own), root) for root in (1, TREE)]
    for segment in (chain(0, 9), chain(START + 3, START + 12), *trees):
        query = layer.queries()[-segment.count :]
        found = run(layer, reach, segment, query, memory, device)
        seen = find_columns(segment, range(segment.count), reach)
        wanted, exact = layer.attend(query, memory, seen), softmax(layer, query, memory, seen)
        if layer.dtype == torch.float32:
            # Both are sums of rounded products in float32: one is as exact as the other.
            errors = [(part - exact).abs().max() for part in (found, wanted)]
            assert errors[0] <= 2 * errors[1] + 1e-6, segment
        else:
            # The second bound is for sums that almost cancel: the rounding of what is summed up.
            rounding = torch.finfo(layer.dtype).eps / 2
            atol = 2e-5 * float(exact.abs().max())
            torch.testing.assert_close(found, wanted, rtol=rounding, atol=atol)


def check_bits(layer: Layer, reach: Reach, device: torch.device) -> None:
    """Check that a row has the same bits in any batch, tree and cache."""
    memory, queries = layer.memory(), layer.queries()
    count, whole = LENGTH - START, chain(START, LENGTH)
    wanted = run(layer, reach, whole, queries[START:], memory, device)
    for size in (1, 9):  # of passes, and of tiles of one pass
        passes, tiles = [], []
        for first in range(0, count, size):
            stop = min(first + size, count)
            own = queries[START + first : START + stop]
            passes.append(
                run(layer, reach, chain(START + first, START + stop), own, memory, device)
            )
            tiles.append(run(layer, reach, whole, own, memory, device, first=first, stop=stop))
        assert torch.equal(torch.cat(passes), wanted), size
        assert torch.equal(torch.cat(tiles), wanted), size
    # The keys are stored in another order.
    order = torch.randperm(LENGTH, generator=torch.Generator().manual_seed(5))
    moved = [part[order] for part in memory]
    segment = chain(START, LENGTH, slots=order.argsort())
    assert torch.equal(run(layer, reach, segment, queries[START:], moved, device), wanted)
    # A path of a tree has the tokens of the text, and other nodes have earlier ones.
    for root in (TREE, CHUNK - 1, FAR):
        tokens = torch.arange(len(PARENTS))
        tokens[list(PATH)] = torch.arange(root, root + len(PATH))
        branches = tree(torch.cat([torch.arange(root), tokens]), root)
        found = run(layer, reach, branches, queries[tokens], memory, device)
        own_rows = slice(root - START, root - START + len(PATH))
        assert torch.equal(found[list(PATH)], wanted[own_rows]), root
        some = run(layer, reach, branches, queries[tokens[4:8]], memory, device, first=4, stop=8)
        assert torch.equal(some, found[4:8]), root
