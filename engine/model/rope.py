"""Rotary embeddings whose frequencies depend on the length of the sequence (longrope).

Such models have one set of frequencies for sequences up to the original length, and another for
longer ones. transformers selects the set by the largest position in the whole batch, so a long
sequence would change the logits of a short one beside it. `LengthGroupedRotary` computes both sets
and gives each row that of its own sequence. When a sequence grows beyond the original length, its
set changes, and all its KV is computed again, as `generate` of transformers does.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.model.segment import Segment
from engine.weights.config_place import ConfigError

# Added to the position of a row that uses the long frequencies. Positions have to carry this mark,
# since transformers passes nothing else about the rows to the rotary embedding.
LONG_OFFSET = 1 << 40


def original_length(config: Any) -> int | None:
    """Return the number of tokens up to which the short frequencies apply.

    Return None if the frequencies of a model never change. Raises `ConfigError` for a rope type
    whose frequencies change with every length, and for layers with different original lengths.
    """
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    is_per_layer = all(isinstance(value, Mapping) for value in parameters.values())
    lengths = set()
    for rope in parameters.values() if is_per_layer else [parameters]:
        kind = rope.get("rope_type", "default")
        if kind == "dynamic":
            raise ConfigError(
                "rope_parameters.rope_type",
                " 'dynamic' is not supported: its frequencies change with every token, so no KV "
                "could be kept. Use a model with yarn, llama3 or longrope.",
            )
        if kind == "longrope":
            lengths.add(int(rope["original_max_position_embeddings"]))
    if len(lengths) > 1:
        raise ConfigError(
            "rope_parameters", ": layers with different original lengths are not supported"
        )
    return lengths.pop() if lengths else None


def mark_long(position_ids: Tensor, segments: Iterable[Segment]) -> None:
    """Add `LONG_OFFSET` to the positions [1, R] of rows that use the long frequencies."""
    for segment in segments:
        if segment.is_long:
            position_ids[:, segment.first : segment.first + segment.count] += LONG_OFFSET


def query_factors(positions: Tensor, *, floor: float, strength: float) -> Tensor:
    """Return the factors [T] of queries at positions [T], which grow with the position (Llama 4).

    arXiv 2501.19399. Up to position `floor` they are 1.
    """
    return torch.log1p(torch.floor((positions.float() + 1.0) / floor)) * strength + 1.0


class LengthGroupedRotary(nn.Module):
    """A wrapper around a longrope module that selects the frequencies row by row.

    `mark_long` marks the rows that use the long frequencies.
    """

    def __init__(self, inner: nn.Module, length: int) -> None:
        super().__init__()
        self.inner = inner
        self.length = length

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, [1, R, head dim] each, for positions [1, R] marked by `mark_long`."""
        is_long = position_ids >= LONG_OFFSET
        position_ids = position_ids % LONG_OFFSET
        # transformers looks at the largest position. One more position beyond the original length
        # selects the long set. Positions clamped to the original length select the short set; the
        # rows that this changes are not used.
        first_long = position_ids.new_full((1, 1), self.length)
        long_cos, long_sin = self.inner(x, torch.cat([position_ids, first_long], dim=1))
        short_cos, short_sin = self.inner(x, position_ids.clamp(max=self.length - 1))
        rows = is_long[:, :, None]
        cos = torch.where(rows, long_cos[:, :-1], short_cos)
        sin = torch.where(rows, long_sin[:, :-1], short_sin)
        return cos, sin
