"""Tests of finding tokens with large noise, against the noise of all tokens."""

import math

import pytest
import torch

from engine.sampling.large_vocabularies.rare_noise import find_rare
from engine.sampling.noise import gumbel_from_uniform, stream, uniform


@pytest.mark.parametrize("size", [1, 64, 1_000])
def test_all_tokens_with_the_noise_their_block_needs_are_found(size: int) -> None:
    blocks, streams = 40, stream(5, 1, torch.arange(7))
    generator = torch.Generator().manual_seed(size)
    needed = torch.rand(7, blocks, generator=generator, dtype=torch.float64) * 12 - 2
    needed[0, :4] = torch.tensor([math.inf, math.nan, 40.0, -math.inf])
    rows, tokens = find_rare(streams, blocks * size, needed)
    noise = gumbel_from_uniform(uniform(streams[:, None], torch.arange(blocks * size)))
    expected = (noise.view(7, blocks, size) >= needed[..., None]).flatten(1)
    found = torch.zeros_like(expected)
    found[rows, tokens] = True
    assert found.sum() == len(rows)
    assert (found | ~expected).all()
    # Few other tokens are found, since only the upper 31 bits are compared.
    slack = (noise.view(7, blocks, size) >= needed[..., None] - 1e-6).flatten(1)
    assert (slack | ~found).all()


def test_a_token_with_exactly_the_needed_noise_is_found() -> None:
    starts, tokens = stream(9, 0, torch.arange(50)), torch.arange(640)
    noise = gumbel_from_uniform(uniform(starts[:, None], tokens))
    best = noise.view(50, 10, 64).amax(-1)
    rows, found = find_rare(starts, 640, best)
    assert len(rows) == 500
    assert torch.equal(noise[rows, found].view(50, 10), best)
