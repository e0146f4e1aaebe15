"""Tests of the candidates against the definition: the argmax over all tokens."""

import random
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.messages import SamplingParams
from engine.sampling.choose import choose, choose_rows
from engine.sampling.large_vocabularies.blocks import Rows
from engine.sampling.logit_rules import TokenCounts, is_greedy, sampling_logprobs
from engine.sampling.noise import gumbel

SIZES = (1, 2, 30, 63, 64, 65, 300, 1_000, 4_096, 16_384, 20_001)
SHAPES = ("normal", "normal", "ties", "flat", "holes", "sharp", "bfloat16", "falling")


def logits_of(shape: str, size: int, generator: torch.Generator) -> Tensor:
    """Return four rows of logits of the given shape."""
    spread = [0.01, 0.3, 1.0, 3.0, 8.0][int(torch.randint(5, (), generator=generator))]
    logits = torch.randn(4, size, generator=generator) * spread
    match shape:
        case "ties":
            return logits.mul(2).round().div(2)
        case "flat":
            return torch.zeros_like(logits)
        case "holes":
            holes = torch.rand(4, size, generator=generator) < 0.5
            holes[:, 0] = False
            return logits.masked_fill(holes, -torch.inf)
        case "sharp":
            logits[:, size // 2] += 30
        case "bfloat16":
            return logits.bfloat16()
        case "falling":
            return logits.sort(-1, descending=True).values
    return logits


def random_params(rng: random.Random, size: int) -> SamplingParams:
    return SamplingParams(
        temperature=rng.choice([0.0, 0.02, 0.3, 0.7, 1.0, 1.0, 2.0]),
        top_p=rng.choice([1.0, 1.0, 0.1, 0.9, 0.99, 0.999999]),
        top_k=rng.choice([0, 0, 0, 1, 20, 64, 65, 1_024, 5_000, 10**6]),
        min_p=rng.choice([0.0, 0.0, 0.2, 1e-6]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.8]),
        presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        frequency_penalty=rng.choice([0.0, 0.0, -0.3]),
        logit_bias=rng.choice([(), ((0, -3.0), (size - 1, 3.0))]) if size > 1 else (),
        seed=rng.getrandbits(64),
    )


@pytest.mark.parametrize("case", range(150))
def test_the_chosen_tokens_are_those_of_the_definition(case: int) -> None:
    rng, generator = random.Random(case), torch.Generator().manual_seed(case)
    size = rng.choice(SIZES)
    logits, params = logits_of(rng.choice(SHAPES), size, generator), random_params(rng, size)
    counts = TokenCounts(rng.randrange(size) for _ in range(5))
    for _ in range(4):
        counts.add(rng.randrange(size))
    paths = [[rng.randrange(size) for _ in range(row)] for row in range(4)]
    banned = [[size - 1] if size > 2 and rng.random() < 0.3 else [] for _ in range(4)]
    positions = [rng.randrange(100_000) for _ in range(4)]
    chosen = choose_rows(
        Rows.of(logits), params, counts, positions=positions, choice=3, paths=paths, banned=banned
    ).tolist()
    noise = gumbel(params.seed, 3, torch.tensor(positions)[:, None], torch.arange(size))
    if is_greedy(params):  # no noise: the best logit after penalties
        untruncated = replace(params, temperature=1.0, top_p=1.0, top_k=0, min_p=0.0)
        noisy = sampling_logprobs(logits.double(), untruncated, counts, paths=paths, banned=banned)
    else:
        noisy = sampling_logprobs(logits, params, counts, paths=paths, banned=banned) + noise
    if not is_greedy(params) or size < 300:
        assert chosen == noisy.argmax(-1).tolist()
    alone = [
        choose(
            logits[row],
            params,
            counts,
            position=positions[row],
            choice=3,
            path=paths[row],
            banned=banned[row],
        )
        for row in range(4)
    ]
    assert chosen == alone


def test_a_row_without_allowed_tokens_gives_token_0() -> None:
    logits = torch.full((2, 100), -torch.inf)
    for params in (SamplingParams(), SamplingParams(top_p=0.5), SamplingParams(temperature=0)):
        assert choose_rows(Rows.of(logits), params, None, positions=[1, 2], choice=0).tolist() == [
            0,
            0,
        ]
