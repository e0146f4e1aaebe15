"""Rotary embeddings whose frequencies depend on the length of the sequence.

The library picks the frequencies by the largest position of the whole forward, so a long sequence
would change the logits of a short neighbour. `LengthGroupedRotary` asks for both sets and gives
each row the one of its own sequence. A sequence that crosses the original length changes set, so
its KV is computed anew, as `generate` does.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from engine.errors import ModelError
from engine.model.segment import Segment

# Added to the position of a row that uses the long frequencies: positions are all that the
# library's forward hands to its rotary embedding.
LONG = 1 << 40


def original_length(config: Any) -> int | None:
    """Tokens up to which the short frequencies hold; None where frequencies never change.

    Raises `ModelError` for a rope type whose frequencies change with every length.
    """
    parameters: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    is_per_layer = all(isinstance(value, Mapping) for value in parameters.values())
    lengths = set()
    for rope in parameters.values() if is_per_layer else [parameters]:
        kind = rope.get("rope_type", "default")
        if kind == "dynamic":
            raise ModelError(
                "rope_parameters.rope_type 'dynamic' is not supported: its frequencies change with "
                "every token, so no KV could be kept. Use one with yarn, llama3 or longrope."
            )
        if kind == "longrope":
            lengths.add(int(rope["original_max_position_embeddings"]))
    if len(lengths) > 1:
        raise ModelError(
            "rope_parameters: layers with different original lengths are not supported"
        )
    return lengths.pop() if lengths else None


def mark_long(position_ids: Tensor, segments: Iterable[Segment]) -> None:
    """Add `LONG` to the positions [1, R] of rows that use the long frequencies."""
    for segment in segments:
        if segment.is_long:
            position_ids[:, segment.first : segment.first + segment.count] += LONG


class LengthGroupedRotary(nn.Module):
    """Wraps a longrope module. `mark_long` marks the rows that use the long frequencies."""

    def __init__(self, inner: nn.Module, length: int) -> None:
        super().__init__()
        self.inner = inner
        self.length = length

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """position_ids [1, R], marked -> cos and sin [1, R, head dim]."""
        is_long = position_ids >= LONG
        position_ids = position_ids % LONG
        # The library looks at the largest position: one more that lies behind the border selects
        # the long set, and positions cut off at the border (their rows are not used) the short.
        border = position_ids.new_full((1, 1), self.length)
        long_cos, long_sin = self.inner(x, torch.cat([position_ids, border], dim=1))
        short_cos, short_sin = self.inner(x, position_ids.clamp(max=self.length - 1))
        rows = is_long[:, :, None]
        cos = torch.where(rows, long_cos[:, :-1], short_cos)
        sin = torch.where(rows, long_sin[:, :-1], short_sin)
        return cos, sin
