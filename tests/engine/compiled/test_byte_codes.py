"""Compiled expansion of grouped codes has the bits of the operations of torch."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from threading import Event, current_thread, main_thread

import pytest
import torch
from torch import Tensor

from engine.compiled import compiler, filling
from engine.weights.formats import awq, groups, mxfp4
from engine.weights.formats.scaled_codes import dequantize
from tests.engine.compiled.bits import DTYPES, equal_bits

TABLES: dict[str, Callable[[], Tensor]] = {
    "int8": lambda: groups.number_values(torch.int8),
    "e4m3": lambda: groups.number_values(torch.float8_e4m3fn),
    "e5m2": lambda: groups.number_values(torch.float8_e5m2),
    "8 bits": lambda: groups.packed_values(8),
    "4 bits": lambda: groups.packed_values(4),
    "2 bits": lambda: groups.packed_values(2),
    "e2m1": mxfp4.pair_values,
}
ROWS, COLUMNS = 40, 2101  # several runs of a kernel and a rest, which does not fill its last byte
SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-45, -1e-40, 2.0**-126, 3.4e38]

Groups = Callable[[], Tensor]
GROUPS: dict[str, Groups] = {
    "one": lambda: torch.zeros(COLUMNS, dtype=torch.int64),
    "blocks of 16": lambda: torch.arange(COLUMNS) // 16,
    "blocks of 128": lambda: torch.arange(COLUMNS) // 128,
    "any order": lambda: (torch.arange(COLUMNS) // 32)[torch.randperm(COLUMNS)],
}


def random_codes(rows: int, table: Tensor) -> Tensor:
    return torch.randint(256, (rows, -(-COLUMNS // table.shape[1])), dtype=torch.uint8)


def random_floats(*shape: int) -> Tensor:
    """Return floats of any bits, the special ones among them."""
    bits = torch.randint(-(1 << 31), 1 << 31, shape)
    floats = bits.to(torch.int32).view(torch.float32)
    floats.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)[: floats.numel()]
    return floats


@pytest.mark.parametrize("scales", ["usual", "any"])
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("table", TABLES)
def test_codes_have_the_bits_of_torch(table: str, group: str, scales: str) -> None:
    assert compiler.is_available()
    torch.manual_seed(0)
    values, own_group = TABLES[table](), GROUPS[group]()
    shape = (ROWS, int(own_group.max()) + 1)
    codes = random_codes(ROWS, values)
    factors = torch.rand(shape) * 0.01 if scales == "usual" else random_floats(*shape)
    for zeros in (None, torch.randint(-8, 16, shape).float()):
        for dtype in DTYPES:
            found, wanted = (torch.empty(ROWS, COLUMNS, dtype=dtype) for _ in range(2))
            dequantize(codes, values, factors, zeros, own_group, found)
            with compiler.switched_off():
                dequantize(codes, values, factors, zeros, own_group, wanted)
            assert equal_bits(found, wanted), dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_float_is_rounded_as_torch_rounds_it(dtype: torch.dtype) -> None:
    """The upper halves of the bits are all there are, and the lower ones lie around ties."""
    upper = torch.arange(1 << 16).unsqueeze(1) << 16
    lower = torch.tensor([0, 1, 0x0FFF, 0x1000, 0x1001, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    floats = (upper | lower).to(torch.int32).view(torch.float32).contiguous()
    codes = torch.ones(floats.shape, dtype=torch.uint8)
    group, found = torch.arange(len(lower)), torch.empty(floats.shape, dtype=dtype)
    dequantize(codes, groups.packed_values(8), floats, None, group, found)
    assert equal_bits(found, floats.to(dtype))


def test_any_number_of_threads_gives_the_same_bits(threads: None) -> None:
    torch.manual_seed(0)
    values, group = groups.packed_values(4), torch.arange(COLUMNS) // 64
    scales, zeros = (torch.rand(ROWS * 9, int(group.max()) + 1) for _ in range(2))
    codes, results = random_codes(ROWS * 9, values), []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(torch.empty(ROWS * 9, COLUMNS, dtype=torch.bfloat16))
        dequantize(codes, values, scales, zeros, group, results[-1])
    assert all(equal_bits(result, results[0]) for result in results)


@pytest.mark.parametrize(
    ("codes", "scales", "count"),
    [((4, 7), (4, 2), 2), ((3, 8), (4, 2), 2), ((4, 8), (3, 2), 2), ((4, 8), (4, 2), 3)],
)
def test_shapes_that_would_reach_other_memory_are_refused(
    codes: tuple[int, int], scales: tuple[int, int], count: int
) -> None:
    out, group = torch.empty(4, 16), torch.arange(16) * count // 16
    packed = torch.zeros(codes, dtype=torch.uint8)
    with pytest.raises(AssertionError):
        dequantize(packed, groups.packed_values(4), torch.ones(scales), None, group, out)


@pytest.mark.parametrize("shape", [(0, 16), (4, 0)])
def test_an_empty_weight_needs_no_work(shape: tuple[int, int]) -> None:
    codes, scales = torch.empty(shape, dtype=torch.uint8), torch.ones(shape[0], 1)
    group = torch.zeros(shape[1], dtype=torch.int64)
    dequantize(codes, groups.packed_values(8), scales, None, group, torch.empty(shape))


def test_an_error_in_a_thread_reaches_the_caller(threads: None) -> None:
    torch.set_num_threads(3)
    out, begun = torch.empty(300, 2048), Event()

    def fill(start: int, *others: object) -> None:
        if current_thread() is main_thread():
            assert begun.wait(30)
            return
        begun.set()
        raise MemoryError(f"part {start}")

    with pytest.raises(MemoryError, match="part"):
        filling.fill_rows(out, 2048, fill)


def test_the_caller_does_the_parts_of_threads_that_do_not_begin(
    threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(2)
    done = list[tuple[int, int]]()
    with ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(filling, "_pool", lambda: pool)
        held = Event()
        pool.submit(held.wait, 30)
        filling.in_parts(300, 2048, lambda first, last: done.append((first, last)))
        held.set()
    assert len(done) > 2 and [*chain(*(range(*part) for part in done))] == [*range(300)]


@pytest.mark.parametrize("inputs", [1, 7, 8, 300])
def test_awq_words_are_transposed_as_by_torch(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.randint(-(1 << 31), 1 << 31, (inputs, 11)).to(torch.int32)
    found = awq.transpose(words)
    with compiler.switched_off():
        assert torch.equal(found, awq.transpose(words))


@pytest.mark.parametrize("dtype", DTYPES)
def test_mxfp4_has_the_bits_of_torch_for_every_exponent(dtype: torch.dtype) -> None:
    blocks = torch.randint(256, (2, 128, 5, 16), dtype=torch.uint8)
    scales = torch.arange(2 * 128 * 5).to(torch.uint8).view(2, 128, 5)
    found, wanted = (torch.empty(mxfp4.expanded_shape(blocks.shape), dtype=dtype) for _ in range(2))
    mxfp4.expand(blocks, scales, found)
    with compiler.switched_off():
        mxfp4.expand(blocks, scales, wanted)
    assert equal_bits(found, wanted)
