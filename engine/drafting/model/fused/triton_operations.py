"""The operations of fused layers by Triton's kernels, on a CUDA device.

The kernels are made for draft steps. Longer prompts, and what has a shape that they are not made
for, are computed by functions of torch.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from engine.drafting.model.fused.operations import (
    AttentionRule,
    NormRule,
    Operations,
    TorchOperations,
)
from engine.model.attention import Batch
from engine.spec import TILE
from engine.triton_kernels import draft_attention, hidden_state, int4_product
from engine.triton_kernels.draft_attention import HeadNorms
from engine.weights.formats.int4 import Int4Linear

# The most kernels that an operation launches for a draft step. A product whose result is not an
# update may need another kernel to sum up its parts.
LAUNCHES: Mapping[str, int] = {
    "norm": 1,
    "add_norm": 1,
    "add": 1,
    "product": 2,
    "update": 1,
    "gated_product": 1,
    "attend": 3,
}

# Names of the library's classes. Whether an activation is what its name says is found when the
# fused module is compared with the library's.
_GATES: Mapping[str, int4_product.Gate] = {
    "SiLU": "silu",
    "SiLUActivation": "silu",
    "GELUTanh": "gelu_tanh",
    "PytorchGELUTanh": "gelu_tanh",
}


def choose_operations(device: torch.device, dtype: torch.dtype) -> Operations:
    """Return the operations for hidden states of a type on a device."""
    has_kernels = dtype.itemsize == 2 and int4_product.is_usable(device)
    return TritonOperations() if has_kernels else TorchOperations()


class TritonOperations(TorchOperations):
    """Operations on rows of 16 bits. What is not here is computed by functions of torch."""

    def norm(self, rows: Tensor, norm: NormRule) -> Tensor:
        if rows.dim() > 2 or rows.shape[-1] > hidden_state.WIDEST:
            return super().norm(rows, norm)
        return hidden_state.normalize(rows, norm.weight, norm.epsilon, norm.offset)

    def add_norm(self, rows: Tensor, update: Tensor, norm: NormRule) -> Tensor:
        if rows.shape[-1] > hidden_state.WIDEST:
            return super().add_norm(rows, update, norm)
        return hidden_state.add_and_normalize(rows, update, norm.weight, norm.epsilon, norm.offset)

    def add(self, rows: Tensor, update: Tensor) -> None:
        if rows.shape[-1] > hidden_state.WIDEST:
            rows.add_(update.sum(0))
        else:
            hidden_state.add(rows, update)

    def update(self, layer: nn.Module, rows: Tensor) -> Tensor:
        if isinstance(layer, Int4Linear) and layer.is_in_row_order:
            return layer.multiply_in_parts(rows)
        return super().update(layer, rows)

    def gated_product(self, layer: nn.Module, rows: Tensor, activation: nn.Module) -> Tensor:
        gate = _GATES.get(type(activation).__name__)
        if isinstance(layer, Int4Linear) and layer.is_in_row_order and gate is not None:
            return layer.multiply(rows, gate)
        return super().gated_product(layer, rows, activation)

    def attend(
        self,
        module: nn.Module,
        rule: AttentionRule,
        joined: Tensor,
        rotation: tuple[Tensor, Tensor],
        batch: Batch,
    ) -> Tensor:
        segment, mask = batch.segments[0], batch.segments[0].mask
        memory = batch.pool.keys[rule.layer], batch.pool.values[rule.layer]
        rows = joined.shape[1]
        is_alone = len(batch.segments) == 1 and segment.start == 0 and segment.count == rows
        fits = memory[0].shape[1:] == (rule.num_kv_heads, rule.width) and rows <= TILE
        if mask is None or not is_alone or not fits or rule.width > draft_attention.WIDEST:
            whole = joined.sum(0, keepdim=True).to(memory[0].dtype)
            return super().attend(module, rule, whole, rotation, batch)
        cosines, sines = rotation
        norms = None
        if rule.query_norm is not None and rule.key_norm is not None:
            pair = rule.query_norm, rule.key_norm
            norms = HeadNorms(
                (pair[0].weight, pair[1].weight),
                (pair[0].epsilon, pair[1].epsilon),
                (pair[0].offset, pair[1].offset),
            )
        queries = draft_attention.rotate_and_store(
            joined, (cosines[0], sines[0]), norms, segment.slots[-rows:], memory, rule.num_heads
        )
        return draft_attention.attend(
            queries,
            memory,
            segment.slots,
            mask,
            segment.positions,
            scale=rule.scaling,
            window=rule.sliding_window,
            bound=rule.softcap,
        )
