"""Weights of many kinds, special scales, and trained weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.weights.coding.cells import Substitute
from tests.engine.weights.coding.copies import empty_copy

DEMO = Path(__file__).parents[4] / "configs" / "demo" / "target" / "model.safetensors"


def usual(*shape: int) -> Tensor:
    return (torch.randn(shape) * 0.02).bfloat16()


def of_bits(bits: Tensor) -> Tensor:
    return bits.to(torch.int16).view(torch.bfloat16)


def with_some(value: float) -> Callable[..., Tensor]:
    def make(*shape: int) -> Tensor:
        weight = usual(*shape)
        weight[torch.rand(shape) < 0.01] = value
        return weight

    return make


def outliers(*shape: int) -> Tensor:
    weight = usual(*shape)
    weight[:, ::32] = 40.0
    return weight


def constant_groups(*shape: int) -> Tensor:
    return torch.randn(shape[0], shape[1] // 32).bfloat16().repeat_interleave(32, 1)


WEIGHTS: dict[str, Callable[..., Tensor]] = {
    "usual": usual,
    "zeros": lambda *shape: torch.zeros(shape).bfloat16(),
    "minus zeros": lambda *shape: -torch.zeros(shape).bfloat16(),
    "some zeros": with_some(0.0),
    "some minus zeros": with_some(-0.0),
    "some infinities": with_some(float("inf")),
    "some minus infinities": with_some(float("-inf")),
    "some NaN": with_some(float("nan")),
    "NaN of any bits": lambda *shape: of_bits(torch.randint(0x7F81, 0x8000, shape)),
    "any bits": lambda *shape: of_bits(torch.randint(-(1 << 15), 1 << 15, shape)),
    "subnormal": lambda *shape: of_bits(torch.randint(0, 128, shape)),
    "tiny": lambda *shape: usual(*shape) * 2.0**-110,
    "huge": lambda *shape: usual(*shape) * 2.0**120,
    "constant groups": constant_groups,
    "one value": lambda *shape: torch.full(shape, -3.0).bfloat16(),
    "an outlier in each group": outliers,
    "positive": lambda *shape: usual(*shape).abs(),
    "far from zero": lambda *shape: usual(*shape) + 1,
}

SCALES = [
    0.0,
    -0.0,
    -1.0,
    1e-45,
    2.0**-126,
    2.0**-26,
    2.0**-27,
    2.0**-22,
    2.0**100,
    2.0**101,
    3.3e38,
]
SCALES += [float("inf"), float("-inf"), float("nan"), 1e-8, 1.0]


def copy_with_any_scale(form: str, columns: int) -> Substitute:
    """Return a copy with a row for each of `SCALES`; every pair with a zero of them occurs."""
    copy = empty_copy(form, len(SCALES), columns)
    copy.pairs.random_(256)
    special = torch.tensor(SCALES)
    if copy.is_int4:
        copy.scales[..., 0] = special
        repeats = -(-len(copy.scales) // len(special))
        copy.scales[..., 1] = special.repeat(repeats)[: len(copy.scales), None]
    else:
        copy.scales[:] = special[:, None]
    return copy


def trained() -> list[Tensor]:
    """Return the weights of one layer and the head of the demo model."""
    tensors = load_file(DEMO)
    chosen = [w for name, w in tensors.items() if ".1." in name or "lm_head" in name]
    weights = [weight.bfloat16() for weight in chosen if weight.dim() == 2]
    assert len(weights) >= 7
    return weights
