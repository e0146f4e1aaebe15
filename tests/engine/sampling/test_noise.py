"""Tests of the noise: fixed bits, a bounded range, and independence of its keys."""

import math

import pytest
import torch
from torch import Tensor

from engine.sampling.noise import GUMBEL_MAX, bits, gumbel, gumbel_from_uniform, stream, uniform

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15

# (seed, choice, position, token) -> 64 bits. They must never change: a seed reproduces an answer.
GOLDEN = {
    (0, 0, 0, 0): 0x2130748AAAC80268,
    (0, 0, 0, 1): 0x0CC78FB979CE5090,
    (0, 0, 1, 0): 0x97693BFC00425025,
    (0, 1, 0, 0): 0x68AC638DA2EDDA0C,
    (1, 0, 0, 0): 0xE28195DDD9EE4956,
    (42, 0, 17, 151_935): 0x991624D0414EF32F,
    (2**64 - 1, 3, 131_071, 31_999): 0x01D0288823833BCD,
    (0xDEADBEEFCAFEBABE, 127, 4_096, 7): 0x133901A769232DAC,
}


def splitmix(state: int, index: int) -> int:
    """Return output `index` of SplitMix64 from `state`, as in the authors' reference code."""
    z = (state + (index + 1) * GAMMA) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def reference_bits(seed: int, choice: int, position: int, token: int) -> int:
    state = seed & MASK
    for part in (0, choice, position):
        state = splitmix(state, part)
    return splitmix(state, token)


def drawn_bits(seed: int, choice: int, position: int, tokens: Tensor) -> list[int]:
    start = stream(seed, choice, torch.tensor(position))
    return [value & MASK for value in bits(start, tokens).tolist()]


def grid(seed: int, choice: int, *, positions: int, tokens: int) -> Tensor:
    """Return the uniform numbers [positions, tokens] of the first positions and tokens."""
    return uniform(stream(seed, choice, torch.arange(positions))[:, None], torch.arange(tokens))


def test_the_reference_gives_the_published_outputs_of_splitmix64() -> None:
    # The first outputs for seed 1234567, which many implementations publish.
    assert [splitmix(1234567, i) for i in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize(("key", "expected"), GOLDEN.items())
def test_the_bits_equal_recorded_ones(key: tuple[int, int, int, int], expected: int) -> None:
    seed, choice, position, token = key
    assert drawn_bits(seed, choice, position, torch.tensor([token])) == [expected]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1, 0xDEADBEEFCAFEBABE])
def test_the_bits_equal_the_reference_in_python_integers(seed: int) -> None:
    tokens = torch.tensor([0, 1, 2, 31_999, 151_935, 2**31])
    for choice, position in ((0, 0), (1, 0), (0, 1), (127, 131_071)):
        expected = [
            reference_bits(seed=seed, choice=choice, position=position, token=token)
            for token in tokens.tolist()
        ]
        assert drawn_bits(seed, choice, position, tokens) == expected


def test_many_keys_at_once_give_what_single_keys_give() -> None:
    whole = grid(5, 2, positions=9, tokens=37)
    one = uniform(stream(5, 2, torch.tensor(4)), torch.arange(37))
    assert torch.equal(whole[4], one)
    pairs = uniform(stream(5, 2, torch.tensor([8, 0])), torch.tensor([36, 1]))
    assert pairs.tolist() == [whole[8, 36].item(), whole[0, 1].item()]


def test_gumbel_accepts_single_positions_columns_and_pairs() -> None:
    tokens = torch.arange(11)
    column = gumbel(3, 1, torch.arange(4)[:, None], tokens)
    assert column.shape == (4, 11)
    assert column.dtype == torch.float64
    torch.testing.assert_close(column[2], gumbel(3, 1, 2, tokens), rtol=1e-14, atol=0)
    pairs = gumbel(3, 1, torch.tensor([3, 0]), torch.tensor([10, 2]))
    torch.testing.assert_close(pairs, column[[3, 0], [10, 2]], rtol=1e-14, atol=0)


def test_gumbel_does_not_change_its_arguments() -> None:
    positions, tokens = torch.arange(3), torch.arange(3)
    gumbel(1, 0, positions, tokens)
    assert positions.tolist() == tokens.tolist() == [0, 1, 2]


def test_extreme_bits_give_numbers_strictly_inside_the_range(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extremes = torch.tensor([0, (1 << 11) - 1, -1, 2**63 - 1, -(2**63)])
    monkeypatch.setattr("engine.sampling.noise.bits", lambda streams, tokens: extremes.clone())
    drawn = uniform(torch.tensor(0), extremes)
    assert drawn.tolist() == [2.0**-54, 2.0**-54, 1 - 2.0**-53, 0.5 - 2.0**-53, 0.5]
    noise = gumbel_from_uniform(drawn)
    assert noise.isfinite().all()
    assert GUMBEL_MAX - 0.02 < noise.max() < GUMBEL_MAX


def test_the_noise_is_the_gumbel_transform_of_the_uniform_number() -> None:
    drawn = grid(8, 0, positions=3, tokens=5)
    expected = [[-math.log(-math.log(u)) for u in row] for row in drawn.tolist()]
    torch.testing.assert_close(
        gumbel(8, 0, torch.arange(3)[:, None], torch.arange(5)),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-13,
        atol=1e-15,
    )


def chi_square_is_likely(counts: Tensor) -> bool:
    """Return True if counts of equally likely cells are within 5 deviations of chi-square."""
    expected = counts.sum() / counts.numel()
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    freedom = counts.numel() - 1
    return abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


DIRECTIONS = {
    "tokens": lambda: grid(1, 0, positions=1, tokens=200_000)[0],
    "positions": lambda: grid(1, 0, positions=200_000, tokens=1)[:, 0],
    "seeds": lambda: torch.cat(
        [grid(seed, 0, positions=1, tokens=100)[0] for seed in range(2_000)]
    ),
    "choices": lambda: torch.cat(
        [grid(1, choice, positions=1, tokens=100)[0] for choice in range(2_000)]
    ),
    "seeds, first token": lambda: torch.stack(
        [grid(s, 0, positions=1, tokens=1)[0, 0] for s in range(5_000)]
    ),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_noise_is_uniform_and_uncorrelated(direction: str) -> None:
    drawn = DIRECTIONS[direction]()
    count = len(drawn)
    assert chi_square_is_likely(torch.histc(drawn, bins=100, min=0, max=1))
    low = (drawn * 2**20).frac()  # the lower bits have to be uniform too
    assert chi_square_is_likely(torch.histc(low, bins=100, min=0, max=1))
    for lag in (1, 2, 64):
        pair = torch.stack([drawn[:-lag], drawn[lag:]])
        assert abs(pair.corrcoef()[0, 1].item()) < 5 / math.sqrt(count)


def test_neighbouring_keys_give_independent_numbers() -> None:
    base = grid(10, 3, positions=50, tokens=1_000)
    others = [
        grid(seed, choice, positions=50, tokens=1_000)
        for seed, choice in ((11, 3), (10, 4), (3, 10))
    ]
    others += [base.roll(1, dims=0), base.roll(1, dims=1)]
    for other in others:
        pairs = torch.histogramdd(
            torch.stack([base.flatten(), other.flatten()], 1), bins=[10, 10], range=[0, 1, 0, 1]
        )
        assert chi_square_is_likely(pairs.hist)


def test_different_keys_give_different_bits() -> None:
    parts = [
        bits(stream(seed, choice, torch.arange(40))[:, None], torch.arange(200)).flatten()
        for seed in (0, 1, 2, GAMMA)
        for choice in range(5)
    ]
    everything = torch.cat(parts).tolist()
    assert len(set(everything)) == len(everything)
