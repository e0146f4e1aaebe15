"""Tests of choosing tokens against slow references: distributions, penalties and noise."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from engine.drafting.model.guess import draft_children
from engine.messages import SamplingParams
from engine.sampling.choose import choose, choose_rows
from engine.sampling.large_vocabularies.blocks import Rows
from engine.sampling.logit_rules import TokenCounts, is_greedy, is_path_dependent, sampling_logprobs
from engine.sampling.logprobs import model_logprobs
from engine.sampling.noise import gumbel
from tests.engine.logits import random_logits

PARAMETERS = {
    "plain": SamplingParams(),
    "temperature": SamplingParams(temperature=0.6),
    "high temperature": SamplingParams(temperature=1.7),
    "top_k": SamplingParams(top_k=7),
    "top_p": SamplingParams(top_p=0.7),
    "min_p": SamplingParams(min_p=0.08),
    "repetition": SamplingParams(repetition_penalty=1.4),
    "presence": SamplingParams(presence_penalty=0.9),
    "frequency": SamplingParams(frequency_penalty=-0.4),
    "bias": SamplingParams(logit_bias=((3, 2.5), (0, -100.0))),
    "all": SamplingParams(
        temperature=0.8,
        top_k=20,
        top_p=0.9,
        min_p=0.02,
        repetition_penalty=1.2,
        presence_penalty=0.3,
        frequency_penalty=0.2,
        logit_bias=((4, -1.0),),
    ),
}
PROMPT, OUTPUT, PATH = (1, 2, 2, 5, 9), (2, 3, 3), (3, 9, 11, 11)


def counts_of(prompt: Sequence[int], output: Sequence[int]) -> TokenCounts:
    counts = TokenCounts(prompt)
    for token in output:
        counts.add(token)
    return counts


def reference(
    logits: Sequence[float],
    params: SamplingParams,
    prompt: Sequence[int] = PROMPT,
    output: Sequence[int] = OUTPUT,
    banned: Sequence[int] = (),
) -> dict[int, float]:
    """Return the probability of each possible token, computed step by step by the definitions."""
    often = Counter(output)
    values = dict(enumerate(logits))
    for token in {*prompt, *output}:
        penalty = params.repetition_penalty
        values[token] *= 1 / penalty if values[token] > 0 else penalty
    for token, count in often.items():
        values[token] -= params.frequency_penalty * count + params.presence_penalty
    for token, bias in params.logit_bias:
        values[token] += bias
    for token in banned:
        del values[token]
    values = {token: value / params.temperature for token, value in values.items()}
    best = max(values.values())
    mass = {token: math.exp(value - best) for token, value in values.items()}
    mass = {token: m for token, m in mass.items() if m >= params.min_p}
    order = sorted(mass, key=lambda token: -mass[token])
    if params.top_k > 0:
        order = order[: params.top_k]
    total = sum(mass[token] for token in order)
    kept, reached = [], 0.0
    for token in order:
        kept.append(token)
        reached += mass[token] / total
        if reached >= params.top_p < 1:
            break
    total = sum(mass[token] for token in kept)
    return {token: mass[token] / total for token in kept}


def assert_same_distribution(log_probs: Tensor, expected: dict[int, float]) -> None:
    assert set(log_probs.isfinite().nonzero()[:, 0].tolist()) == set(expected)
    for token, probability in expected.items():
        assert log_probs[token].exp().item() == pytest.approx(probability, rel=1e-4)


@pytest.mark.parametrize("name", PARAMETERS)
def test_probabilities_are_those_of_the_definitions(name: str) -> None:
    logits = random_logits(8, 60, seed=len(name))
    log_probs = sampling_logprobs(
        logits, PARAMETERS[name], counts_of(PROMPT, OUTPUT), paths=[PATH] * 8
    )
    for row in range(8):
        expected = reference(logits[row].tolist(), PARAMETERS[name], output=(*OUTPUT, *PATH))
        assert_same_distribution(log_probs[row], expected)


@pytest.mark.parametrize("name", PARAMETERS)
def test_samples_follow_the_distribution(name: str) -> None:
    count, params = 20_000, replace(PARAMETERS[name], seed=2024)
    logits = random_logits(1, 40)
    expected = reference(logits[0].tolist(), params)
    chosen = choose_rows(
        Rows.of(logits.expand(count, -1)),
        params,
        counts_of(PROMPT, OUTPUT),
        positions=range(count),
        choice=0,
    )
    found = Counter(chosen.tolist())
    assert found.keys() <= expected.keys()
    rare = [token for token, p in expected.items() if p * count < 10]
    cells = [([token], p) for token, p in expected.items() if token not in rare]
    if rare:
        cells.append((rare, sum(expected[token] for token in rare)))
    chi_square = sum(
        (sum(found[token] for token in tokens) - p * count) ** 2 / (p * count)
        for tokens, p in cells
    )
    freedom = len(cells) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom) + 8


@pytest.mark.parametrize("name", PARAMETERS)
def test_choose_returns_the_token_with_the_best_noisy_value(name: str) -> None:
    """With the target's own logits, the best child that a draft proposes is the same token."""
    params, counts = replace(PARAMETERS[name], seed=7), counts_of(PROMPT, OUTPUT)
    logits = random_logits(40, 300)
    positions = range(100, 140)
    dense = sampling_logprobs(logits, params, counts) + gumbel(
        7, 2, torch.tensor(positions)[:, None], torch.arange(300)
    )
    chosen = [
        choose(row, params, counts, position=position, choice=2)
        for row, position in zip(logits, positions, strict=True)
    ]
    assert chosen == dense.argmax(-1).tolist()
    tokens, _ = draft_children(
        logits, params, counts, positions=positions, choice=2, tau=0.5, branch=1
    )
    assert chosen == tokens[:, 0].tolist()


@pytest.mark.parametrize("temperature", [0.02, 0.1, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_tokens_left_out_of_the_candidates_are_never_the_best(
    temperature: float, spread: float
) -> None:
    params = SamplingParams(temperature=temperature, seed=3)
    logits = random_logits(12, 5_000, spread)
    log_probs, tokens = sampling_logprobs(logits, params, None), torch.arange(5_000)
    for position in range(12):
        dense = log_probs[position] + gumbel(3, 0, position, tokens)
        chosen = choose(logits[position], params, None, position=position, choice=0)
        assert chosen == dense.argmax()


def test_top_p_keeps_the_same_tokens_as_a_sorted_reference() -> None:
    for seed, (size, top_p, spread) in enumerate(
        [(50, 0.1, 1.0), (50, 0.999, 1.0), (3_000, 0.5, 3.0), (3_000, 0.9, 0.1), (3_000, 0.7, 0.0)]
    ):
        logits = random_logits(rows=5, vocabulary=size, spread=spread, seed=seed)
        log_probs = sampling_logprobs(logits, SamplingParams(top_p=top_p), None)
        for row, values in zip(log_probs, logits, strict=True):
            if spread:
                kept = set(row.isfinite().nonzero()[:, 0].tolist())
                expected = reference(values.tolist(), SamplingParams(top_p=top_p), (), ())
                assert kept == set(expected)
            else:
                assert row.isfinite().all()  # all tokens are equal to the last one kept


def test_a_row_that_is_sorted_entirely_does_not_change_other_rows() -> None:
    flat, sharp = random_logits(1, 5_000, 0.05), random_logits(1, 5_000, 6.0)
    params = SamplingParams(top_p=0.9)
    both = sampling_logprobs(torch.cat([sharp, flat, sharp]), params, None)
    assert torch.equal(both[0], sampling_logprobs(sharp, params, None)[0])
    assert torch.equal(both[1], sampling_logprobs(flat, params, None)[0])
    assert torch.equal(both[2], both[0])


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gives_identical_bits_alone_and_among_others(name: str, dtype: torch.dtype) -> None:
    logits = random_logits(7, 33_001, 3.0).to(dtype)
    params, counts = PARAMETERS[name], counts_of(PROMPT, OUTPUT)
    paths = [PATH[:depth] for depth in (0, 1, 2, 3, 4, 1, 2)]
    together = sampling_logprobs(logits, params, counts, paths=paths)
    for row in range(7):
        alone = sampling_logprobs(logits[row, None].clone(), params, counts, paths=[paths[row]])
        assert torch.equal(alone[0], together[row])


def test_tokens_that_tie_with_the_last_one_kept_are_kept() -> None:
    logits = torch.tensor([[2.0, 1.0, 1.0, 0.0]])
    assert sampling_logprobs(logits, SamplingParams(top_k=2), None).isfinite().tolist() == [
        [True, True, True, False]
    ]
    assert sampling_logprobs(logits, SamplingParams(top_p=0.62), None).isfinite().tolist() == [
        [True, True, True, False]
    ]


def test_parameters_that_are_off_change_nothing() -> None:
    logits = random_logits(2, 50)
    expected = logits.log_softmax(-1)
    for params in (SamplingParams(), SamplingParams(top_k=50), SamplingParams(top_k=99)):
        torch.testing.assert_close(sampling_logprobs(logits, params, None), expected)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1e-9),
        SamplingParams(top_k=1),
        SamplingParams(top_p=0.0),
    ],
)
def test_greedy_parameters_choose_the_lowest_id_of_equal_best_logits(
    params: SamplingParams,
) -> None:
    assert is_greedy(params)
    logits = torch.tensor([0.0, 5.0, 5.0, -3.0])
    for seed in range(5):
        chosen = choose(logits, replace(params, seed=seed), None, position=seed, choice=seed)
        assert chosen == 1


def test_penalties_bias_and_bans_apply_to_greedy_choices() -> None:
    logits = torch.tensor([5.0, 4.9, 4.8, 4.7, -1.0])
    greedy = SamplingParams(temperature=0)

    def choose_greedily(
        params: SamplingParams, banned: Sequence[int] = (), path: Sequence[int] = ()
    ) -> int:
        counts = counts_of([0], [1])
        return choose(logits, params, counts, position=3, choice=0, banned=banned, path=path)

    assert choose_greedily(greedy) == 0
    assert choose_greedily(greedy, banned=[0, 2]) == 1
    assert choose_greedily(replace(greedy, repetition_penalty=1.5)) == 2
    assert choose_greedily(replace(greedy, presence_penalty=1.0), banned=[0]) == 2
    assert choose_greedily(replace(greedy, presence_penalty=1.0), banned=[0], path=[2]) == 3
    assert choose_greedily(replace(greedy, frequency_penalty=0.01), path=[0] * 20) == 1
    assert choose_greedily(replace(greedy, logit_bias=((4, 50.0),))) == 4


def test_presence_and_frequency_penalties_ignore_the_prompt() -> None:
    logits = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    counts = counts_of([0, 1], [])
    repeated = sampling_logprobs(logits, SamplingParams(repetition_penalty=2.0), counts)
    torch.testing.assert_close(repeated, torch.tensor([[0.5, -2.0, 1.0, -1.0]]).log_softmax(-1))
    for params in (SamplingParams(presence_penalty=1.5), SamplingParams(frequency_penalty=1.5)):
        torch.testing.assert_close(
            sampling_logprobs(logits, params, counts), logits.log_softmax(-1)
        )


def test_tokens_of_the_path_count_like_emitted_tokens() -> None:
    params = PARAMETERS["all"]
    logits = random_logits(3, 60)
    paths = [(), (3,), PATH]
    drafted = sampling_logprobs(logits, params, counts_of(PROMPT, OUTPUT), paths=paths)
    for row, path in enumerate(paths):
        emitted = sampling_logprobs(logits[row, None], params, counts_of(PROMPT, (*OUTPUT, *path)))
        assert torch.equal(drafted[row], emitted[0])


def test_penalties_without_token_counts_are_an_error() -> None:
    with pytest.raises(AssertionError, match="counts"):
        sampling_logprobs(random_logits(1, 5), SamplingParams(presence_penalty=1.0), None)


@pytest.mark.parametrize(
    ("name", "dependent"), [("all", True), ("presence", True), ("top_p", False), ("bias", False)]
)
def test_only_penalties_depend_on_the_path(name: str, dependent: bool) -> None:
    assert is_path_dependent(PARAMETERS[name]) == dependent


def test_banned_tokens_are_never_chosen() -> None:
    logits = torch.zeros(20)
    logits[:5] = 9.0
    chosen = {
        choose(logits, SamplingParams(), None, position=p, choice=0, banned=range(5))
        for p in range(100)
    }
    assert len(chosen) > 10
    assert min(chosen) >= 5
    log_probs = sampling_logprobs(logits.expand(2, -1), SamplingParams(), None, banned=[[0, 1], []])
    assert log_probs.isfinite().sum(-1).tolist() == [18, 20]


def test_choosing_does_not_change_the_logits() -> None:
    logits = random_logits(2, 60)
    before = logits.clone()
    params, counts = PARAMETERS["all"], counts_of(PROMPT, OUTPUT)
    sampling_logprobs(logits, params, counts, paths=[PATH, ()], banned=[[1], []])
    choose(logits[0], params, counts, position=0, choice=0, path=PATH, banned=[1])
    draft_children(logits, params, counts, positions=[1, 2], choice=0, tau=0.5, branch=3)
    model_logprobs(logits[0], 3, 2)
    assert torch.equal(logits, before)


def test_choices_equal_recorded_ones() -> None:
    """The same seed gives the same answer in every release."""
    logits = (torch.arange(1_000) * 37 % 101) / 16
    expected = {
        (0, 0): [423, 60, 65, 958, 49, 726, 524, 660],
        (0, 1): [469, 543, 565, 625, 191, 401, 24, 963],
        (2**64 - 1, 0): [27, 491, 786, 384, 494, 496, 666, 248],
    }
    for (seed, choice), tokens in expected.items():
        params = SamplingParams(seed=seed, temperature=0.7, top_p=0.95)
        chosen = [choose(logits, params, None, position=p, choice=choice) for p in range(8)]
        assert chosen == tokens
