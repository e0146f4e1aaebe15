"""What configurations and weights say of mixtures of experts."""

from collections.abc import Iterable
from typing import Any

import torch

from engine.weights.layout import UnitLayout
from engine.weights.packing import dense_tensors

# In these families a layer adds the experts' output to the residual and does nothing after it: no
# norm of the output, no scale. So experts may be added when the rest is done. A shared expert is
# added before them then, and not after them as in the library, which differs by rounding.
EXPERTS_LAST = frozenset(
    {
        "deepseek_v2",
        "deepseek_v3",
        "glm4_moe_lite",
        "gpt_oss",
        "kimi_linear",
        "mixtral",
        "qwen3_moe",
    }
)
# Keys for the number of experts that a token uses; Gemma 4 has the second one.
_CHOSEN = ("num_experts_per_tok", "top_k_experts")


def chosen_experts(config: Any) -> tuple[str, int | None]:
    """Return the key for the number of experts that each token uses, and its value."""
    key = next((key for key in _CHOSEN if getattr(config, key, None) is not None), _CHOSEN[0])
    return key, getattr(config, key, None)


def has_experts(config: Any, units: Iterable[UnitLayout]) -> bool:
    """Return whether some layers are mixtures of experts.

    Some families have the keys of experts in every configuration, and layers without any: a dense
    Nemotron-H, or a model whose first layers, which are dense, are all that there are.

    Args:
        config: of the language part.
        units: the layers. Experts are stored together, [experts, outputs, inputs], or by number.
    """
    if not any(getattr(config, name, None) for name in ("num_local_experts", "num_experts")):
        return False
    return any(
        "experts" in name.split(".") or _is_stack(shape)
        for unit in units
        for name, (_, shape) in dense_tensors(unit, torch.float32).items()
    )


def _is_stack(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is several matrices, and not the weights of a convolution."""
    return len(shape) == 3 and shape[1] > 1
