"""Tests of int4 products on a device, with the rows of draft steps, against the dense weight.

They need only the dependencies of the engine.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams.

import pytest
import torch
from torch import nn

from engine.weights.formats import int4
from engine.weights.formats.linear import substitute, supports
from tests.engine import int4_codes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CUDA = torch.device("cuda", 0)
ROWS = (1, 2, 3, 4, 6, 8, 15, 16, 17, 24, 31, 32, 33, 64)


def weight_of(out_features: int, in_features: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(out_features + in_features)
    return torch.randn(out_features, in_features, generator=generator).bfloat16()


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize(
    ("out_features", "in_features"),
    [(8, 64), (24, 96), (256, 128), (1000, 448), (3584, 3584), (512, 18944)],
)
def test_products_are_close_to_those_of_the_dense_weight(
    out_features: int, in_features: int, group: int
) -> None:
    """Input sizes that are multiples of 128, 64 or only 32 are packed differently."""
    if in_features % group:
        pytest.skip("no whole groups")
    weight, bias = weight_of(out_features, in_features), torch.randn(out_features).bfloat16()
    assert supports(in_features, out_features, group, CUDA, "int4")
    layer = substitute(weight, bias, group, CUDA, "int4")
    assert isinstance(layer, int4.Int4Linear)
    dense = int4_codes.quantize(weight, group).dense().to(CUDA)
    for rows in ROWS:
        inputs = torch.randn(1, rows, in_features, device=CUDA).bfloat16()
        want = inputs.float() @ dense.T + bias.to(CUDA).float()
        found = layer(inputs)
        assert found.shape == want.shape and found.dtype == torch.bfloat16
        error = (found.float() - want).norm() / want.norm()
        assert error < 0.01, (rows, float(error))


def test_codes_are_the_same_on_both_devices() -> None:
    weight = weight_of(256, 512)
    here, there = int4_codes.quantize(weight, 32), int4_codes.quantize(weight.to(CUDA), 32)
    assert torch.equal(here.scales_and_zeros, there.scales_and_zeros.cpu())
    assert (here.codes.int() - there.codes.cpu().int()).abs().max() <= 1
    assert (here.codes != there.codes.cpu()).float().mean() < 1e-3


@pytest.mark.parametrize(("in_features", "out_features"), [(100, 64), (64, 60), (32 * 3 + 16, 64)])
def test_other_shapes_stay_dense(in_features: int, out_features: int) -> None:
    layer = substitute(weight_of(out_features, in_features), None, 32, CUDA, "int4")
    assert isinstance(layer, nn.Linear)


def test_a_product_can_be_captured() -> None:
    layer = substitute(weight_of(512, 512), None, 32, CUDA, "int4")
    inputs = torch.randn(1, 6, 512, device=CUDA).bfloat16()
    side_stream = torch.cuda.Stream(CUDA)
    side_stream.wait_stream(torch.cuda.current_stream(CUDA))
    with torch.cuda.stream(side_stream):
        layer(inputs)
    torch.cuda.current_stream(CUDA).wait_stream(side_stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = layer(inputs)
    inputs.copy_(torch.randn(1, 6, 512, device=CUDA))
    graph.replay()
    assert torch.equal(found, layer(inputs))
