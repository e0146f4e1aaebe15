"""Mixture-of-experts products that do not depend on the batch.

The library's grouped product rounds differently with the number of rows an expert gets (probed:
2 of 14 rows bit-equal). Here every expert's product has exactly `ROWS` rows, the last ones padded,
and a row adds its experts in ascending order.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

EXPERTS = "understudy"
ROWS = 64


def apply_experts(
    experts: Any, hidden: Tensor, top_k_index: Tensor, top_k_weights: Tensor
) -> Tensor:
    """hidden [rows, D], index and weights [rows, k] -> [rows, D].

    `experts` is the library's fused module: `gate_up_proj` [E, 2I, D] and `down_proj` [E, D, I],
    or both transposed, with or without biases; its own `_apply_gate` is kept.
    """
    out = torch.zeros_like(hidden)
    for expert in sorted(set(top_k_index.flatten().tolist())):
        rows, place = torch.where(top_k_index == expert)
        for first in range(0, len(rows), ROWS):
            part = rows[first : first + ROWS]
            result = _apply_expert(experts, expert, _padded(hidden[part]))[: len(part)]
            weight = top_k_weights[part, place[first : first + ROWS], None]
            out[part] += (result * weight).to(out.dtype)
    return out


def _apply_expert(experts: Any, expert: int, x: Tensor) -> Tensor:
    gate_up = _product(experts, "gate_up_proj", expert, x)
    return _product(experts, "down_proj", expert, experts._apply_gate(gate_up))


def _product(experts: Any, name: str, expert: int, x: Tensor) -> Tensor:
    weight = getattr(experts, name)[expert]
    y = x @ weight if experts.is_transposed else F.linear(x, weight)
    if experts.has_bias:
        y = y + getattr(experts, f"{name}_bias")[expert]
    return y


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (0, 0, 0, ROWS - len(x)))
