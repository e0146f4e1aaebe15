"""Replacements for the modules of a layer: norms, attention, the MLP, and a whole layer."""

from typing import Any

from torch import Tensor, nn

from engine.drafting.model.fused.operations import AttentionRule, NormRule, Operations
from engine.model.attention import Batch, LayerRule


class FusedNorm(nn.Module):
    """A norm by one operation."""

    def __init__(self, operations: Operations, rule: NormRule) -> None:
        super().__init__()
        self.operations, self.rule = operations, rule
        self.weight = rule.weight  # layers of Nemotron-H read its type

    def forward(self, hidden: Tensor) -> Tensor:
        """Return normalized rows of the shape of `hidden`."""
        rows = hidden.reshape(-1, hidden.shape[-1])
        return self.operations.norm(rows, self.rule).view(hidden.shape)


class FusedAttention(nn.Module):
    """Attention with one product for queries, keys and values."""

    batch: Batch  # of the rows that run; `set_batch` sets it

    def __init__(
        self,
        operations: Operations,
        inputs: nn.Module,
        output: nn.Module,
        attention: AttentionRule,
        rule: LayerRule,
    ) -> None:
        """Take the joined product of the inputs, that of the output, and the rules of the layer."""
        super().__init__()
        self.operations = operations
        self.inputs, self.output = inputs, output
        self.attention, self.rule = attention, rule
        self.layer_idx = rule.layer  # by which `attention_modules` finds this module

    def run(self, rows: Tensor, rotation: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """Return what the heads attend to, [R, heads * d], before the last product."""
        joined = self.operations.update(self.inputs, rows)
        return self.operations.attend(self, self.attention, joined, rotation, batch)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        *_: Any,
        **__: Any,
    ) -> tuple[Tensor, None]:
        """Return the output [1, R, D] for `hidden_states` [1, R, D]."""
        attended = self.run(hidden_states[0], position_embeddings, self.batch)
        return self.operations.product(self.output, attended)[None], None


class FusedMlp(nn.Module):
    """A gated MLP with one product for the gate and what it is multiplied with."""

    def __init__(
        self, operations: Operations, inputs: nn.Module, output: nn.Module, activation: nn.Module
    ) -> None:
        super().__init__()
        self.operations = operations
        self.inputs, self.output, self.activation = inputs, output, activation

    def run(self, rows: Tensor) -> Tensor:
        """Return the rows before the last product."""
        return self.operations.gated_product(self.inputs, rows, self.activation)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the output [..., D] for `hidden` [..., D]."""
        inner = self.run(hidden.reshape(-1, hidden.shape[-1]))
        return self.operations.product(self.output, inner).view(hidden.shape)


class FusedLayer(nn.Module):
    """A layer of the llama shape, whose residual sums and norms are one operation each."""

    def __init__(
        self,
        operations: Operations,
        original: nn.Module,
        norms: tuple[NormRule, NormRule],
        attention: FusedAttention,
        mlp: FusedMlp,
    ) -> None:
        """Take the parts of a layer of the library, and the layer for its other attributes."""
        super().__init__()
        self.operations = operations
        self._norms = norms
        self.attention, self.mlp = attention, mlp
        self._original = (original,)  # in a tuple it is no submodule

    def __getattr__(self, name: str) -> Any:
        # Models read attributes of their layers (attention types and the like).
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_original"][0], name)

    def forward(
        self,
        hidden: Tensor,
        *_: Any,
        position_embeddings: tuple[Tensor, Tensor],
        batch: Batch,
        **__: Any,
    ) -> Tensor:
        """Run the layer over `hidden` [1, R, D], which is overwritten and returned."""
        rows, do = hidden[0], self.operations
        before_attention, before_mlp = self._norms
        attended = self.attention.run(do.norm(rows, before_attention), position_embeddings, batch)
        update = do.update(self.attention.output, attended)
        inner = self.mlp.run(do.add_norm(rows, update, before_mlp))
        do.add(rows, do.update(self.mlp.output, inner))
        return hidden
