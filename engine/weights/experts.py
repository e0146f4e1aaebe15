"""What configurations say of mixtures of experts."""

from typing import Any

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
