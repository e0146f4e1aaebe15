"""Compiled expansion of GGUF's blocks has the bits of the functions of torch."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.compiled import compiler
from engine.weights.gguf_blocks import expand_blocks, expand_into
from engine.weights.gguf_file import TYPES
from tests.engine.compiled.bits import DTYPES, equal_bits

BLOCKS = {type_.name: type_ for type_ in TYPES.values() if not type_.is_plain}


def random_blocks(kind: str, *shape: int) -> Tensor:
    """Return random bytes for a tensor of this shape."""
    *lead, columns = shape
    size = (*lead, columns // BLOCKS[kind].size * BLOCKS[kind].nbytes)
    return torch.randint(256, size, dtype=torch.uint8, generator=torch.manual_seed(0))


# Bits of float16: infinite, NaN, zero, the smallest and the largest subnormal and normal numbers.
SCALES = (0x7C00, 0xFC00, 0x7C01, 0xFE00, 0, 0x8000, 1, 0x8001, 0x3FF, 0x400, 0x7BFF, 0xFBFF)


def expand_by_torch(kind: str, blocks: Tensor, shape: tuple[int, ...]) -> Tensor:
    return expand_blocks(kind, blocks.view(-1, BLOCKS[kind].nbytes)).view(shape)


@pytest.mark.parametrize("kind", BLOCKS)
def test_all_dtypes_have_the_bits_of_torch(kind: str) -> None:
    assert compiler.is_available()
    shape = (401, 2560)
    blocks = random_blocks(kind, *shape)
    for row, bits in zip(blocks, SCALES, strict=False):
        words = row[: len(row) // 4 * 2].view(torch.uint16)
        words.fill_(bits)
    wanted = expand_by_torch(kind, blocks, shape)
    assert kind == "MXFP4" or wanted.isnan().any()
    for dtype in DTYPES:
        found = torch.full(shape, 7, dtype=dtype)
        expand_into(kind, blocks, found)
        assert equal_bits(found, wanted.to(dtype)), dtype


@pytest.mark.parametrize("kind", ["Q8_0", "MXFP4"])
def test_every_scale_has_the_bits_of_torch(kind: str) -> None:
    shape = (1 << 16, 32)
    blocks = random_blocks(kind, *shape)
    blocks[:, :2] = torch.arange(1 << 16).to(torch.uint16).view(torch.uint8).view(-1, 2)
    wanted = expand_by_torch(kind, blocks, shape)
    assert kind == "Q8_0" or ((wanted != 0) & (wanted.abs() < 2.0**-126)).any()
    for dtype in DTYPES:
        found = torch.empty(shape, dtype=dtype)
        expand_into(kind, blocks, found)
        assert equal_bits(found, wanted.to(dtype)), dtype


@pytest.mark.parametrize("shape", [(1600, 256), (3, 400, 768)])
def test_any_number_of_threads_gives_the_same_bits(shape: tuple[int, ...], threads: None) -> None:
    blocks = random_blocks("Q4_K", *shape)
    wanted = expand_by_torch("Q4_K", blocks, shape).to(torch.bfloat16)
    for count in (1, 2, 3, 8):
        torch.set_num_threads(count)
        found = torch.empty(shape, dtype=torch.bfloat16)
        expand_into("Q4_K", blocks, found)
        assert equal_bits(found, wanted), count


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda whole: whole.mT,
    "every second row": lambda whole: whole[..., ::2, :],
    "some columns": lambda whole: whole[..., 64 : whole.shape[-1] - 128],
    "some rows": lambda whole: whole[..., 8:, :],
}


@pytest.mark.parametrize("lead", [(), (3,), (2, 2)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_memory_of_any_strides_is_filled_and_nothing_beside_it(
    layout: str, lead: tuple[int, ...], threads: None
) -> None:
    torch.set_num_threads(2)
    whole = torch.full((*lead, 768, 704), 7.0, dtype=torch.bfloat16)
    out = LAYOUTS[layout](whole)
    out = out[..., : out.shape[-1] // 32 * 32]
    blocks = random_blocks("Q8_0", *out.shape)
    expand_into("Q8_0", blocks, out)
    assert equal_bits(
        out.contiguous(), expand_by_torch("Q8_0", blocks, out.shape).to(torch.bfloat16)
    )
    out.fill_(7)
    assert (whole == 7).all()


@pytest.mark.parametrize("shape", [(1, 32), (1, 96), (5, 32), (17, 544)])
def test_few_blocks(shape: tuple[int, ...]) -> None:
    blocks = random_blocks("Q5_0", *shape)
    found = torch.empty(shape, dtype=torch.bfloat16)
    expand_into("Q5_0", blocks, found)
    assert equal_bits(found, expand_by_torch("Q5_0", blocks, shape).to(torch.bfloat16))


def test_blocks_of_another_size_are_refused() -> None:
    with pytest.raises(AssertionError):
        expand_into("Q4_0", random_blocks("Q4_0", 3, 64), torch.empty(2, 64))


@pytest.mark.parametrize("kind", BLOCKS)
def test_without_numba_the_bits_are_the_same(kind: str, no_numba: None) -> None:
    assert not compiler.is_available()
    blocks, found = random_blocks(kind, 2, 33, 512), torch.empty(2, 512, 33, dtype=torch.bfloat16)
    expand_into(kind, blocks, found.mT)
    wanted = expand_by_torch(kind, blocks, (2, 33, 512)).to(torch.bfloat16)
    assert equal_bits(found.mT.contiguous(), wanted)


def test_a_dtype_without_a_kernel_is_filled_by_torch() -> None:
    blocks, found = random_blocks("Q4_0", 3, 64), torch.empty(3, 64, dtype=torch.float64)
    expand_into("Q4_0", blocks, found)
    wanted = expand_by_torch("Q4_0", blocks, (3, 64)).double()
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
