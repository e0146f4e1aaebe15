"""The noise: fixed bits, strictly inside its range, and independent in every direction."""

import math

import pytest
import torch
from torch import Tensor

from engine.sampling.noise import GUMBEL_MAX, bits, gumbel, gumbel_of, stream, uniform

MASK = 2**64 - 1
GAMMA = 0x9E3779B97F4A7C15

# (seed, choice, position, token) -> 64 bits. These never change: a seed replays an answer.
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
    """Output `index` of SplitMix64 from `state`, as in the reference code of its authors."""
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


def grid(seed: int, choice: int, positions: int, tokens: int) -> Tensor:
    """Uniform numbers [positions, tokens]."""
    return uniform(stream(seed, choice, torch.arange(positions))[:, None], torch.arange(tokens))


def test_splitmix_is_splitmix() -> None:
    # The first outputs for seed 1234567, published with many implementations.
    assert [splitmix(1234567, i) for i in range(3)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
    ]


@pytest.mark.parametrize(("key", "expected"), GOLDEN.items())
def test_the_bits_are_golden(key: tuple[int, int, int, int], expected: int) -> None:
    seed, choice, position, token = key
    assert drawn_bits(seed, choice, position, torch.tensor([token])) == [expected]


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, 2**64 - 1, 0xDEADBEEFCAFEBABE])
def test_the_bits_are_those_of_exact_integers(seed: int) -> None:
    tokens = torch.tensor([0, 1, 2, 31_999, 151_935, 2**31])
    for choice, position in ((0, 0), (1, 0), (0, 1), (127, 131_071)):
        expected = [reference_bits(seed, choice, position, t) for t in tokens.tolist()]
        assert drawn_bits(seed, choice, position, tokens) == expected


def test_a_grid_holds_what_single_keys_give() -> None:
    whole = grid(5, 2, positions=9, tokens=37)
    one = uniform(stream(5, 2, torch.tensor(4)), torch.arange(37))
    assert torch.equal(whole[4], one)
    pairs = uniform(stream(5, 2, torch.tensor([8, 0])), torch.tensor([36, 1]))
    assert pairs.tolist() == [whole[8, 36].item(), whole[0, 1].item()]


def test_gumbel_takes_numbers_columns_and_pairs_of_positions() -> None:
    tokens = torch.arange(11)
    column = gumbel(3, 1, torch.arange(4)[:, None], tokens)
    assert column.shape == (4, 11)
    assert column.dtype == torch.float64
    torch.testing.assert_close(column[2], gumbel(3, 1, 2, tokens), rtol=1e-14, atol=0)
    pairs = gumbel(3, 1, torch.tensor([3, 0]), torch.tensor([10, 2]))
    torch.testing.assert_close(pairs, column[[3, 0], [10, 2]], rtol=1e-14, atol=0)


def test_arguments_are_left_alone() -> None:
    positions, tokens = torch.arange(3), torch.arange(3)
    gumbel(1, 0, positions, tokens)
    assert positions.tolist() == tokens.tolist() == [0, 1, 2]


def test_extreme_bits_stay_strictly_inside_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    extremes = torch.tensor([0, (1 << 11) - 1, -1, 2**63 - 1, -(2**63)])
    monkeypatch.setattr("engine.sampling.noise.bits", lambda streams, tokens: extremes.clone())
    drawn = uniform(torch.tensor(0), extremes)
    assert drawn.tolist() == [2.0**-54, 2.0**-54, 1 - 2.0**-53, 0.5 - 2.0**-53, 0.5]
    noise = gumbel_of(drawn)
    assert noise.isfinite().all()
    assert GUMBEL_MAX - 0.02 < noise.max() < GUMBEL_MAX


def test_noise_is_gumbel_of_the_uniform_number() -> None:
    drawn = grid(8, 0, 3, 5)
    expected = [[-math.log(-math.log(u)) for u in row] for row in drawn.tolist()]
    torch.testing.assert_close(
        gumbel(8, 0, torch.arange(3)[:, None], torch.arange(5)),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-13,
        atol=1e-15,
    )


def chi_square_is_likely(counts: Tensor) -> bool:
    """Whether counts of equally likely cells look drawn: within 5 deviations of chi-square."""
    expected = counts.sum() / counts.numel()
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    freedom = counts.numel() - 1
    return abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


DIRECTIONS = {
    "tokens": lambda: grid(1, 0, 1, 200_000)[0],
    "positions": lambda: grid(1, 0, 200_000, 1)[:, 0],
    "seeds": lambda: torch.cat([grid(seed, 0, 1, 100)[0] for seed in range(2_000)]),
    "choices": lambda: torch.cat([grid(1, choice, 1, 100)[0] for choice in range(2_000)]),
    "seeds, first token": lambda: torch.stack([grid(s, 0, 1, 1)[0, 0] for s in range(5_000)]),
}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_noise_is_uniform_and_uncorrelated(direction: str) -> None:
    drawn = DIRECTIONS[direction]()
    count = len(drawn)
    assert chi_square_is_likely(torch.histc(drawn, bins=100, min=0, max=1))
    low = (drawn * 2**20).frac()  # the lower bits as well
    assert chi_square_is_likely(torch.histc(low, bins=100, min=0, max=1))
    for lag in (1, 2, 64):
        pair = torch.stack([drawn[:-lag], drawn[lag:]])
        assert abs(pair.corrcoef()[0, 1].item()) < 5 / math.sqrt(count)


def test_neighbouring_keys_share_nothing() -> None:
    base = grid(10, 3, 50, 1_000)
    others = [grid(seed, choice, 50, 1_000) for seed, choice in ((11, 3), (10, 4), (3, 10))]
    others += [base.roll(1, dims=0), base.roll(1, dims=1)]
    for other in others:
        pairs = torch.histogramdd(
            torch.stack([base.flatten(), other.flatten()], 1), bins=[10, 10], range=[0, 1, 0, 1]
        )
        assert chi_square_is_likely(pairs.hist)


def test_no_two_keys_draw_the_same_bits() -> None:
    parts = [
        bits(stream(seed, choice, torch.arange(40))[:, None], torch.arange(200)).flatten()
        for seed in (0, 1, 2, GAMMA)
        for choice in range(5)
    ]
    everything = torch.cat(parts).tolist()
    assert len(set(everything)) == len(everything)
