"""Tests of strict attention on a GPU: it is that of the CPU, and a row has always the same bits.

Triton's interpreter runs the same checks where there is no GPU (`make test-kernels`).
"""

import logging

import pytest
import torch

from engine.model.segment import Reach
from engine.spec import DraftSpec
from engine.triton_kernels import attention, compiler
from tests.engine.attention_layers import Layer
from tests.engine.models import PLAIN, alone, checkpoint, exact, load, prompt, request, run
from tests.kernels.attention_checks import EQUAL, MODELS, ROUNDED, check_bits, check_rounding

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = torch.device("cuda:0")


@pytest.fixture
def triton() -> None:
    """Skip the test where Triton cannot compile: strict numerics then use float64."""
    if not attention.can_attend(DEVICE):
        pytest.skip("Triton cannot be used; the log says why")


@pytest.mark.parametrize(("layer", "reach"), ROUNDED, ids=str)
def test_the_output_is_that_of_the_cpu_within_one_rounding(
    layer: Layer, reach: Reach, triton: None
) -> None:
    check_rounding(layer, reach, DEVICE)


@pytest.mark.parametrize(
    ("layer", "reach"), [*EQUAL, *((layer, Reach()) for layer in MODELS)], ids=str
)
def test_a_row_has_the_same_bits_in_any_batch_tree_and_cache(
    layer: Layer, reach: Reach, triton: None
) -> None:
    check_bits(layer, reach, DEVICE)


def test_without_triton_attention_is_computed_in_float64(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [request("greedy", prompt(150, 2)), request("sampled", prompt(9, 3), seed=3)]
    folder = checkpoint("llama", torch.bfloat16)
    monkeypatch.setattr(compiler, "is_installed", lambda: False)
    attention.can_attend.cache_clear()
    with caplog.at_level(logging.WARNING):
        plain = load(folder, PLAIN, device="cuda:0")
        want = exact(alone(plain, requests))
        plain.close()
        engine = load(folder, DraftSpec("ngram"), device="cuda:0")
        assert exact(run(engine, requests)) == want
        engine.close()
    attention.can_attend.cache_clear()
    assert caplog.text.count("in float64") == 1
