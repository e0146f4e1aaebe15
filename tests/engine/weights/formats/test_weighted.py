"""Tests of scales that are fitted by the importance of the input channels."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from engine.weights.formats import nf4
from tests.engine import int4_codes

Dense = Callable[[Tensor, Tensor | None], Tensor]  # weight, importance -> quantized, expanded


def int4_dense(group: int) -> Dense:
    return lambda weight, importance: int4_codes.quantize(weight, group, importance).dense()


def nf4_dense(weight: Tensor, importance: Tensor | None) -> Tensor:
    specs = nf4.packed_tensors("", tuple(weight.shape)).values()
    packed, absmax = (torch.empty(shape, dtype=dtype) for dtype, shape in specs)
    nf4.quantize(weight, packed, absmax, importance)
    out = torch.empty(weight.shape)
    nf4.dequantize(packed, absmax, out)
    return out


FORMS = [
    pytest.param(int4_dense(32), id="int4-32"),
    pytest.param(int4_dense(64), id="int4-64"),
    pytest.param(nf4_dense, id="nf4"),
]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def uneven(columns: int, seed: int = 0) -> Tensor:
    """Return importance as models have it: few channels are far more important than the rest."""
    return normal(columns, seed=seed + 100).mul(2).exp()


def error(dense: Tensor, weight: Tensor, importance: Tensor) -> float:
    return float(((dense - weight).square() * importance).sum())


@pytest.mark.parametrize("dense", FORMS)
@pytest.mark.parametrize("seed", range(4))
def test_fitted_scales_have_less_weighted_error(dense: Dense, seed: int) -> None:
    weight, importance = normal(96, 256, seed=seed), uneven(256, seed)
    fitted, plain = dense(weight, importance), dense(weight, None)
    assert error(fitted, weight, importance) < 0.85 * error(plain, weight, importance)


@pytest.mark.parametrize("group", [32, 64])
@pytest.mark.parametrize("seed", range(3))
def test_a_fit_is_nearly_as_good_as_a_search(group: int, seed: int) -> None:
    weight, importance = normal(32, 256, seed=seed), uneven(256, seed)
    values, weights = weight.view(32, -1, group), importance.view(-1, group)
    least = torch.full(values.shape[:2], torch.inf)
    for low in torch.linspace(0.5, 1.2, 15):
        for high in torch.linspace(0.5, 1.2, 15):
            zero = values.amin(-1, keepdim=True) * low
            scale = (values.amax(-1, keepdim=True) * high - zero) / 15
            levels = ((values - zero) / scale).round().clamp(0, 15)
            errors = ((levels * scale + zero - values).square() * weights).sum(-1)
            least = torch.minimum(least, errors)
    found = error(int4_dense(group)(weight, importance), weight, importance)
    assert found < 1.15 * float(least.sum())


@pytest.mark.parametrize("dense", FORMS)
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_where_all_channels_count_alike_the_plain_error_is_smaller_too(
    dense: Dense, scale: float
) -> None:
    weight, equal = normal(64, 128), torch.full((128,), scale)
    assert error(dense(weight, equal), weight, equal) < error(dense(weight, None), weight, equal)


@pytest.mark.parametrize("dense", FORMS)
def test_no_group_becomes_worse(dense: Dense) -> None:
    weight = normal(64, 64) ** 5  # with such outliers, a fit alone ends worse for some groups
    importance = uneven(64)
    fitted, plain = (
        ((dense(weight, own) - weight).square() * importance).sum(-1) for own in (importance, None)
    )
    # Where a value is between two codes, a fitted nf4 weight may take the other one.
    assert (fitted <= 1.001 * plain + 1e-9).all()
    assert (fitted < 0.9 * plain).any()


@pytest.mark.parametrize("dense", FORMS)
def test_channels_that_were_never_used_count_alike(dense: Dense) -> None:
    weight = normal(64, 128)
    assert torch.equal(dense(weight, torch.zeros(128)), dense(weight, torch.ones(128)))


@pytest.mark.parametrize("dense", FORMS)
@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_equal_weights_are_kept(dense: Dense, value: float) -> None:
    weight = torch.full((32, 64), value)
    assert torch.allclose(dense(weight, uneven(64)), weight, rtol=1e-2)


@pytest.mark.parametrize("dense", FORMS)
def test_large_weights_are_fitted_in_pieces(dense: Dense) -> None:
    weight, importance = normal(5000, 256), uneven(256)
    whole = dense(weight, importance)
    assert torch.equal(whole[-32:], dense(weight[-32:], importance))
