"""Tests of the functions that compiled code and torch share: they are exact to a few roundings."""

import pytest
import torch

from engine.compiled.formulas import TensorOperations, cap, weight

OPERATIONS = TensorOperations()
NOTHING = -torch.inf


def test_weights_are_exponentials() -> None:
    scores = -torch.cat([torch.linspace(0, 87, 100_001), torch.logspace(-30, 0, 1000)])
    found = weight(OPERATIONS, scores, 0.0).double()
    torch.testing.assert_close(found, scores.double().exp(), rtol=2e-7, atol=0)


@pytest.mark.parametrize(
    ("score", "peak", "want"),
    [
        (0.0, 0.0, 1.0),  # exactly, so that a block without a seen key changes nothing
        (-0.0, 0.0, 1.0),
        (300.5, 300.5, 1.0),
        (NOTHING, 3.0, 0.0),
        (NOTHING, NOTHING, 0.0),
        (-88.0, 0.0, 0.0),
        (-3e38, 3e38, 0.0),
    ],
)
def test_the_edges_of_weights(score: float, peak: float, want: float) -> None:
    found = weight(OPERATIONS, torch.tensor([score]), torch.tensor([peak]))
    assert found.item() == want


@pytest.mark.parametrize("bound", [0.5, 30.0, 50.0])
def test_capped_scores_are_hyperbolic_tangents(bound: float) -> None:
    near, far = torch.linspace(-2, 2, 10_001) * bound, torch.logspace(-30, 30, 1001)
    scores = torch.cat([near, far, -far, torch.zeros(1)])
    found = cap(OPERATIONS, scores, bound).double()
    want = torch.tanh(scores.double() / bound) * bound
    torch.testing.assert_close(found, want, rtol=3e-7, atol=0)
    assert cap(OPERATIONS, torch.tensor([NOTHING]), bound).item() == NOTHING
