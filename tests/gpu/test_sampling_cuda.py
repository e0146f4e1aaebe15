"""Tests that noise and choices are the same on a CUDA device as on the CPU."""

import pytest
import torch

from engine.drafting.model.guess import draft_children
from engine.messages import SamplingParams
from engine.sampling.choose import choose, choose_rows
from engine.sampling.large_vocabularies.blocks import Rows
from engine.sampling.large_vocabularies.rare_noise import find_rare
from engine.sampling.logit_rules import TokenCounts, sampling_logprobs
from engine.sampling.logprobs import model_logprobs
from engine.sampling.noise import bits, gumbel, stream, uniform

pytestmark = pytest.mark.gpu
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

CUDA = torch.device("cuda", 0)
SEEDS = (0, 1, -1, 2**63, 2**64 - 1)
PARAMS = (
    SamplingParams(temperature=0),
    SamplingParams(seed=4),
    SamplingParams(seed=4, temperature=0.1),
    SamplingParams(seed=4, temperature=0.7, top_p=0.9, top_k=200, min_p=0.001),
    SamplingParams(seed=4, repetition_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1),
)


def logits_of(rows: int) -> torch.Tensor:
    return torch.randn(rows, 50_257, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("seed", SEEDS)
def test_bits_and_uniform_numbers_are_equal_on_both_devices(seed: int) -> None:
    positions, tokens = torch.arange(64)[:, None], torch.arange(10_000)
    here = stream(seed, 3, positions)
    there = stream(seed, 3, positions.to(CUDA))
    assert torch.equal(there.cpu(), here)
    assert torch.equal(bits(there, tokens.to(CUDA)).cpu(), bits(here, tokens))
    assert torch.equal(uniform(there, tokens.to(CUDA)).cpu(), uniform(here, tokens))
    noise = gumbel(seed, 3, positions.to(CUDA), tokens.to(CUDA))
    torch.testing.assert_close(noise.cpu(), gumbel(seed, 3, positions, tokens), rtol=1e-14, atol=0)


@pytest.mark.parametrize("params", PARAMS)
def test_choices_are_equal_on_both_devices(params: SamplingParams) -> None:
    logits, counts = logits_of(50), TokenCounts([1, 2, 3])
    counts.add(2)
    for position, row in enumerate(logits):
        chosen = [
            choose(own, params, counts, position=position, choice=1, path=[7, 8], banned=[9])
            for own in (row, row.to(CUDA))
        ]
        assert chosen[0] == chosen[1]


@pytest.mark.parametrize("size", [1_000, 50_257, 152_064])
@pytest.mark.parametrize("params", PARAMS)
def test_rows_chosen_together_equal_rows_chosen_alone(params: SamplingParams, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    logits = (torch.randn(64, size, generator=generator) * 2.5).to(CUDA)
    counts = TokenCounts([1, 2, 3])
    counts.add(2)
    paths = [[row % 5] for row in range(64)]
    together = choose_rows(
        Rows.of(logits), params, counts, positions=range(64), choice=1, paths=paths
    )
    assert together.device == CUDA
    alone = [
        choose(row, params, counts, position=position, choice=1, path=paths[position])
        for position, row in enumerate(logits)
    ]
    assert together.tolist() == alone


def test_both_devices_find_the_same_tokens_of_rare_noise() -> None:
    starts = stream(3, 0, torch.arange(9))
    needed = torch.linspace(2, 14, 9 * 2376, dtype=torch.float64).view(9, 2376)
    found = []
    for device in (torch.device("cpu"), CUDA):
        rows, tokens = find_rare(starts.to(device), 152_064, needed.to(device))
        noise = gumbel(3, 0, rows, tokens)
        enough = noise >= needed.to(device)[rows, tokens // 64]
        found.append(list(zip(rows[enough].tolist(), tokens[enough].tolist(), strict=True)))
    assert found[0] == found[1]


@pytest.mark.parametrize("params", PARAMS)
def test_children_are_equal_on_both_devices(params: SamplingParams) -> None:
    logits, counts, found = logits_of(24), TokenCounts([1, 2, 3]), []
    for device in (torch.device("cpu"), CUDA):
        tokens, scores = draft_children(
            logits.to(device),
            params,
            counts,
            positions=range(24),
            choice=0,
            tau=0.5,
            branch=4,
            paths=[[5]] * 24,
            banned=[[9]] * 24,
        )
        found.append((tokens.cpu(), scores.cpu()))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-3)


def test_a_row_has_the_same_bits_alone_and_with_other_rows() -> None:
    logits = logits_of(7).to(CUDA)
    params = SamplingParams(temperature=0.7, top_p=0.9, min_p=0.001)
    together = [sampling_logprobs(logits[row, None], params, None)[0] for row in range(7)]
    for row in range(7):
        assert torch.equal(
            sampling_logprobs(logits[row, None].clone(), params, None)[0], together[row]
        )
        assert model_logprobs(logits[row], row, 5) == model_logprobs(logits[row].clone(), row, 5)
