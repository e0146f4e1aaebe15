"""Choices of whole rows, as a GPU makes them: they are those of `choose_rows`, bit for bit."""

import pytest
import torch

from engine.messages import SamplingParams
from engine.sampling import noise
from engine.sampling.choose import NO_CHOICE, UNDECIDED, choose_rows, choose_rows_at_once
from engine.sampling.large_vocabularies.blocks import Rows
from engine.sampling.noise import gumbel, make_streams, rounded_gumbel
from tests.engine.logits import random_logits

PARAMS = [
    SamplingParams(seed=5),
    SamplingParams(seed=5, temperature=0.2),
    SamplingParams(seed=5, temperature=2.5),
    SamplingParams(seed=5, top_k=7),
    SamplingParams(seed=5, top_k=3000),
    SamplingParams(seed=5, top_p=0.7),
    SamplingParams(seed=5, min_p=0.05),
    SamplingParams(seed=5, top_k=50, top_p=0.9, min_p=0.01, temperature=0.8),
    SamplingParams(seed=5, logit_bias=((3, 9.0), (2, -100.0))),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, logit_bias=((3, 90.0),)),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [5, 300, 33_000])
@pytest.mark.parametrize("params", PARAMS, ids=str)
def test_choices_equal_those_among_candidates(
    params: SamplingParams, size: int, dtype: torch.dtype
) -> None:
    logits = (random_logits(90, size, 3.0)).to(dtype)  # with equal values in bfloat16
    logits[3, 1], logits[4, 0] = torch.nan, torch.inf
    logits[5, : size - 2] = -torch.inf
    banned = [[row % 3, 4] if row % 2 else [] for row in range(90)]
    asked = {"positions": range(90), "choice": 1, "banned": banned}
    want = choose_rows(Rows.of(logits), params, None, **asked)  # type: ignore[arg-type]  # a table
    got = choose_rows_at_once(Rows.of(logits), params, **asked)  # type: ignore[arg-type]  # a table
    decided = got != UNDECIDED
    assert torch.equal(got[decided], want[decided])
    assert decided.all() or params.top_p < 1
    assert got[3] == got[4] == NO_CHOICE


def test_rows_with_too_large_a_nucleus_are_undecided() -> None:
    logits = torch.stack([torch.zeros(5000), torch.arange(5000.0)])
    params = SamplingParams(seed=1, top_p=0.9)
    found = choose_rows_at_once(Rows.of(logits), params, positions=[1, 2], choice=0)
    assert found[0] == UNDECIDED
    assert found[1] == choose_rows(Rows.of(logits), params, None, positions=[1, 2], choice=0)[1]


@pytest.mark.parametrize("at_once", [1, 1000, 1 << 20])
def test_rounded_noise_is_near_the_exact_one(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(noise, "MAX_NUMBERS", at_once)
    streams = make_streams(7, 2, range(30), torch.device("cpu"))
    found = rounded_gumbel(streams, 700)
    want = gumbel(7, 2, torch.arange(30)[:, None], torch.arange(700)).float()
    torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    assert want.max() > 8


@pytest.mark.parametrize("drawn", [0, 1, 2**52, 2**53 - 2, 2**53 - 1])
def test_noise_of_the_extreme_numbers_is_finite(
    monkeypatch: pytest.MonkeyPatch, drawn: int
) -> None:
    monkeypatch.setattr(noise, "bits", lambda *_: torch.tensor([[drawn]]) << 11)
    exact = noise.gumbel_from_uniform(noise.uniform(torch.zeros(1), torch.zeros(1)))
    found = rounded_gumbel(torch.zeros(1, dtype=torch.int64), 1)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0.03)
