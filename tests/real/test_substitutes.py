"""Substitutes of a published model whose scales are fitted are nearer to the target."""

import pytest

from benchmarks.real.substitutes import PLAIN, Form, measure


@pytest.mark.timeout(1200)
def test_fitted_substitutes_are_nearer_to_the_target() -> None:
    fitted = Form("int4", 32, is_fitted=True)
    before, after = measure(prompts=1, tokens=48, forms=[PLAIN, fitted])
    assert after[1] == before[1] == 5  # bits
    assert after[3] < 0.75 * before[3]  # divergence
    assert after[4] > before[4] > 0.7  # the same best token
    assert after[5] > before[5] > 0.7  # the same choice with the same noise
