"""SubSpec: low-bit copies of the target's own layers write the tree, on the target's KV.

SubSpec (arXiv 2509.18344): every streamed layer has a 4-bit substitute on the device; resident
layers serve both. The draft reads the exact KV of the verified prefix and writes its own into the
scratch slots behind it, which the pass then overwrites with exact ones.
"""

import logging
from collections.abc import Mapping
from collections.abc import Sequence as Seq

import torch
from torch import Tensor, nn

from engine.decoder import Decoder, bind, build_on_meta
from engine.draft_model import Bound, DraftModel
from engine.drafter import DraftContext, DraftNeeds, Target
from engine.errors import ModelError
from engine.family import is_mixture
from engine.growth import Bounds
from engine.quantize import Kernel, fastest_kernel, substitute, substitute_bytes
from engine.sequence import Sequence
from engine.tree import DraftTree

log = logging.getLogger(__name__)

DEFAULT = Bounds(depth=48, width=6, branch=6, budget=256)


class SubSpecDrafter:
    def __init__(self, model: DraftModel) -> None:
        self.model = model

    def propose(self, sequences: Seq[Sequence], rooms: Seq[int]) -> list[DraftTree]:
        tables = [sequence.pages for sequence in sequences]
        return [growth.finish()[0] for growth in self.model.grow(sequences, tables, rooms)]

    def commit(self, sequence: Sequence, rows: Seq[int]) -> None:
        """The KV is the target's: the engine keeps it."""

    def release(self, sequence: Sequence) -> None:
        """The pages are the target's: the engine gives them back."""


class SubSpec:
    """The prepared method: sizes are known, nothing is quantized yet."""

    def __init__(self, context: DraftContext) -> None:
        if is_mixture(context.config):
            raise ModelError(
                f"draft.method: subspec has no substitutes for mixtures of experts "
                f"({context.config.model_type!r}). Use specexec with a small model of the same "
                "vocabulary, or ngram."
            )
        self.context = context
        self.bounds = context.bounds(DEFAULT)
        self.group = context.spec.draft.group
        self.needs = DraftNeeds(
            tree_rows=self.bounds.budget,
            scratch_rows=max(self.bounds.budget, self.bounds.draft_rows),
            weight_bytes=sum(substitute_bytes(unit, self.group) for unit in context.units.layouts),
        )

    def build(self, target: Target) -> SubSpecDrafter:
        """One walk over the stream makes all substitutes, on the device."""
        context, weights = self.context, target.decoder.weights
        model = build_on_meta(context.config, context.dtype, strict=False)
        layers = model.get_decoder().layers
        modules = [*layers, model.get_output_embeddings()]
        kernel = self._kernel(modules[0])
        for index, module in enumerate(modules):  # without experts, each is one unit
            with weights.unit(index) as views:
                if weights is target.stream and target.stream.is_resident(index):
                    bind(module, views)
                else:
                    modules[index] = _substitute(module, views, self.group, context.device, kernel)
            context.progress("making the substitutes", index + 1, len(modules))
        model.set_output_embeddings(modules[-1])
        decoder = Decoder(model, Bound(), target.tensors, device=context.device, strict=False)
        return SubSpecDrafter(DraftModel(decoder, target.cache, self.bounds, context.vocab_size))

    def _kernel(self, layer: nn.Module) -> Kernel:
        """The 4-bit product that is fastest here for a draft step's rows."""
        linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        shapes = [(linear.out_features, linear.in_features) for linear in linears]
        kernel = fastest_kernel(shapes, self.bounds.width, self.context.device, self.group)
        log.info("substitutes use the %s product", kernel)
        return kernel


def _substitute(
    module: nn.Module, views: Mapping[str, Tensor], group: int, device: torch.device, kernel: Kernel
) -> nn.Module:
    """The twin of a unit: its linear layers in 4 bits, its other tensors copied."""
    linears = {path: part for path, part in module.named_modules() if isinstance(part, nn.Linear)}
    for path in linears:
        prefix = f"{path}." if path else ""
        twin = substitute(
            views[f"{prefix}weight"], views.get(f"{prefix}bias"), group, device, kernel
        )
        if not path:
            return twin
        module.set_submodule(path, twin)
    rest = {name: t.clone() for name, t in views.items() if name.rpartition(".")[0] not in linears}
    bind(module, rest)
    return module


def prepare(context: DraftContext) -> SubSpec:
    return SubSpec(context)
