"""The draft's children and scores, against those computed over all tokens."""

import pytest
import torch

from engine.drafting.model.guess import draft_children
from engine.messages import SamplingParams
from engine.sampling.choose import choose_rows
from engine.sampling.large_vocabularies.blocks import Rows
from engine.sampling.logit_rules import sampling_logprobs
from engine.sampling.noise import gumbel
from tests.engine.logits import random_logits


def test_scores_are_a_softmax_over_noisy_log_probabilities() -> None:
    logits, positions = random_logits(6, 500), [4, 5, 5, 6, 900, 0]
    for tau in (0.3, 1.0):
        params = SamplingParams(seed=5, temperature=0.9)
        dense = sampling_logprobs(logits, params, None) + gumbel(
            5, 1, torch.tensor(positions)[:, None], torch.arange(500)
        )
        tokens, scores = draft_children(
            logits, params, None, positions=positions, choice=1, tau=tau, branch=500
        )
        assert scores.dtype == torch.float32
        expected = (dense / tau).softmax(-1).float().gather(-1, tokens)
        torch.testing.assert_close(scores.exp(), expected, rtol=1e-4, atol=1e-12)


def test_greedy_scores_are_a_softmax_of_logits_over_tau() -> None:
    logits = random_logits(3, 50)
    tokens, scores = draft_children(
        logits,
        SamplingParams(temperature=0),
        None,
        positions=[1, 2, 3],
        choice=0,
        tau=0.5,
        branch=50,
    )
    expected = (logits * 2).log_softmax(-1).sort(descending=True)
    assert torch.equal(tokens, expected.indices)
    torch.testing.assert_close(scores, expected.values)


def test_children_may_come_from_far_below_the_drafts_best() -> None:
    logits = random_logits(20, 4_000, 0.2)
    params = SamplingParams(seed=11)
    tokens, scores = draft_children(
        logits, params, None, positions=range(20), choice=0, tau=0.5, branch=4
    )
    dense = sampling_logprobs(logits, params, None) + gumbel(
        11, 0, torch.arange(20)[:, None], torch.arange(4_000)
    )
    assert tokens.tolist() == dense.topk(4).indices.tolist()
    assert (scores.diff(dim=-1) <= 0).all()
    ranks = (logits > logits.gather(-1, tokens[:, :1])).sum(-1)
    assert ranks.max() > 1_000


def test_rows_with_few_tokens_are_filled_up_with_scores_of_minus_inf() -> None:
    logits = random_logits(2, 30)
    params, banned = SamplingParams(top_k=3), [[], [int(logits[1].argmax())]]
    tokens, scores = draft_children(
        logits, params, None, positions=[1, 2], choice=0, tau=0.5, branch=8, banned=banned
    )
    assert tokens.shape == scores.shape == (2, 8)
    assert scores.isfinite().sum(-1).tolist() == [3, 3]
    assert banned[1][0] not in tokens[1, :3]
    small, _ = draft_children(logits, params, None, positions=[1, 2], choice=0, tau=1.0, branch=99)
    assert small.shape == (2, 30)


@pytest.mark.parametrize("spread", [3.0, 4.0])
@pytest.mark.parametrize("slope", [0.0, 1.3])
@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=5),
        SamplingParams(seed=5, temperature=0.7, top_p=0.9),
        SamplingParams(seed=5, temperature=1.2, top_k=50),
        SamplingParams(seed=5, min_p=0.05),
    ],
)
def test_a_draft_with_the_targets_logits_finds_the_targets_choice(
    params: SamplingParams, spread: float, slope: float
) -> None:
    """The hit rate must not fall because the draft examines few tokens of a row."""
    rows, size = 150, 20_032
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(rows, size, generator=generator) * spread
    logits -= slope * torch.arange(1, size + 1).log()
    expected = choose_rows(Rows.of(logits), params, None, positions=range(rows), choice=0)
    for branch in (1, 6):
        tokens, scores = draft_children(
            logits, params, None, positions=range(rows), choice=0, tau=0.5, branch=branch
        )
        assert (tokens[:, 0] == expected).float().mean() >= (0.99 if params.top_p == 1 else 0.9)
        assert (scores[:, :-1] >= scores[:, 1:]).all()
        assert (scores.exp().sum(-1) < 1.0001).all()
        likely = [own[found] for own, found in zip(tokens, scores.isfinite(), strict=True)]
        assert all(len(own.unique()) == len(own) for own in likely)


def test_scores_of_a_long_row_are_close_to_those_over_all_tokens() -> None:
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(100, 20_032, generator=generator) * 2
    logits -= 1.2 * torch.arange(1, 20_033).log()
    greedy = SamplingParams(temperature=0)
    for tau in (0.5, 1.0):
        tokens, scores = draft_children(
            logits, greedy, None, positions=range(100), choice=0, tau=tau, branch=4
        )
        expected = (logits / tau).log_softmax(-1).topk(4)
        assert torch.equal(tokens, expected.indices)
        torch.testing.assert_close(scores, expected.values, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(seed=3),
        SamplingParams(seed=3, temperature=0.4),
        SamplingParams(seed=3, top_p=0.8),
        SamplingParams(seed=3, top_p=0.95),
        SamplingParams(seed=3, top_k=30, min_p=0.01, top_p=0.9),
        SamplingParams(temperature=0),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [300, 40_000])
def test_the_children_of_whole_rows_are_those_of_the_definition(
    size: int, params: SamplingParams
) -> None:
    logits = random_logits(40, size, 5.0)
    tokens, scores = draft_children(
        logits, params, None, positions=range(40), choice=0, tau=0.7, branch=3, at_once=True
    )
    if params.temperature == 0:
        dense = logits.log_softmax(-1)
    else:
        noise = gumbel(3, 0, torch.arange(40)[:, None], torch.arange(size))
        dense = sampling_logprobs(logits, params, None) + noise
    wanted = (dense / 0.7).log_softmax(-1).float().topk(3)
    likely = wanted.values > -6.0
    assert likely.sum() > 40
    assert torch.equal(tokens[likely], wanted.indices[likely])
    torch.testing.assert_close(scores[likely], wanted.values[likely], atol=0.01, rtol=0.01)


def test_no_token_is_left_out_of_whole_rows_whose_nucleus_is_large() -> None:
    flat, params = torch.zeros(30, 5000), SamplingParams(seed=3, top_p=0.9)
    tokens, _ = draft_children(
        flat, params, None, positions=range(30), choice=0, tau=1.0, branch=1, at_once=True
    )
    noise = gumbel(3, 0, torch.arange(30)[:, None], torch.arange(5000))
    assert torch.equal(tokens[:, 0], noise.argmax(-1))
