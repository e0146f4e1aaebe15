"""Low-bit copies of the target's own layers as the draft, on the target's KV cache.

Every streamed layer has a 4-bit substitute on the device; target and draft share resident layers.
A layer with a mixture of experts has a substitute even if it is resident: the target may keep its
experts in several units, and a GPU's draft multiplies with all of them in one kernel. The draft
reads the exact KV of the verified prefix and writes its own into scratch slots.

At a model's first start the substitutes are made twice. The first ones write some text, from which
the importance of the input channels is measured (`importance.py`); the second ones, which are kept
in the cache, have scales that are fitted by it. So each unit is read twice.
"""

import gc
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from engine.drafting.method import DraftContext, LoadedTarget
from engine.drafting.model.cuda_graphs import graphed_steps
from engine.drafting.model.draft_cache import SharedCache
from engine.drafting.model.draft_model import BoundWeights, DraftModel
from engine.drafting.model.fused.fuse import fuse
from engine.drafting.model.fused.triton_operations import choose_operations
from engine.drafting.model.importance import (
    ImportanceUnits,
    Measured,
    describe_importance,
    importance_layouts,
    measure_importance,
)
from engine.drafting.model.shared_layers import SharedLayers
from engine.drafting.model.substitutes import (
    SubstituteUnits,
    WeightCopies,
    allocate_host_buffer,
    describe_form,
    find_copies,
    linear_paths,
    substitute_unit,
    warm_up_products,
    weight_name,
)
from engine.errors import ModelError
from engine.malloc import give_back_freed
from engine.messages import LoadProgress
from engine.model.binder import bind
from engine.model.decoder import Decoder
from engine.model.library import build_on_meta
from engine.recurrent.nodes import NodeMemory
from engine.streaming.packed import PackedUnits
from engine.streaming.packed_cache import open_or_pack
from engine.text.chat_start import start_tokens
from engine.weights.expert_weights import find_experts
from engine.weights.formats.linear import (
    ExpertLayers,
    Kernel,
    best_kernel,
    is_read_faster,
    substitute_bytes,
)
from engine.weights.layout import UnitReader
from engine.weights.outline import decoder_layers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelfDraft:
    """The prepared SubSpec method. Nothing is quantized before `build`."""

    context: DraftContext

    def build(self, target: LoadedTarget) -> DraftModel:
        """Build a model of the target's resident layers and of substitutes for all others."""
        context, stream = self.context, target.stream
        # Resident units that are packed and expanded during a pass cannot be shared.
        shares = target.decoder.weights is stream
        layers = target.reader.units
        shared = [
            index
            for index, units in enumerate(layers)
            if shares and all(map(stream.is_resident, units))
        ]
        parts = _Parts(context, target, shared)
        substitutes, copies = None, None
        if parts.is_shared:
            decoder, _ = parts.decoder(None)
        else:
            decoder, substitutes, copies = parts.substituted_decoder()
        operations = choose_operations(decoder.device, context.dtype)
        fuse(decoder, target.cache, operations)
        pool, capture = target.cache.pool, context.device.capture()
        make_graphs = partial(graphed_steps, decoder, pool, capture, context.progress)
        shared_layers = SharedLayers(
            decoder,
            parts.shareable if shares else frozenset(),
            layers,
            stream,
            substitutes,
            parts.make_layers,
            target.cache,
            operations,
            make_graphs,
            copies,
        )
        return DraftModel(
            context.method,
            decoder,
            SharedCache(target.cache, _nodes(target)),
            context.bounds,
            context.vocab_size,
            make_graphs(0),
            at_once=context.device.is_asynchronous,
            copies=copies,
            shared=shared_layers,
        )


class _Parts:
    """The parts of one draft while it is built: shared units, substitutes and their importance."""

    def __init__(
        self, context: DraftContext, target: LoadedTarget, shared: Collection[int]
    ) -> None:
        self._context = context
        self._target = target
        self._modules = _modules(self._model())  # for their shapes: they get no weights
        self._experts = find_experts(self._modules)
        self._shared = [
            index for index in shared if not find_experts([self._modules[index]]).stacks
        ]
        if len(self._shared) < len(self._modules) and self._has_own_head():
            self._shared = [index for index in self._shared if index != len(self._modules) - 1]
        self._paths = [linear_paths(module) for module in self._modules]

    @property
    def is_shared(self) -> bool:
        """Whether the draft consists of the target's own units alone."""
        return len(self._shared) == len(self._modules)

    @property
    def shareable(self) -> frozenset[int]:
        """The layers that may be shared: those without experts."""
        layers = enumerate(self._modules[:-1])
        return frozenset(number for number, own in layers if not find_experts([own]).stacks)

    def make_layers(self) -> list[nn.Module]:
        """Return new layers of the draft without weights."""
        tensors, device = self._target.tensors, self._context.device.torch_device
        decoder = Decoder(self._model(), BoundWeights(), tensors, device=device, strict=False)
        return [layer.inner for layer in decoder.layers]

    def decoder(self, substitutes: UnitReader | None) -> tuple[Decoder, list[nn.Module]]:
        """Return a decoder of the shared units and, for all others, of `substitutes`.

        Return the modules of its units too.

        `substitutes` may be None if all units are shared.
        """
        context, device = self._context, self._context.device.torch_device
        model = self._model()
        modules = _modules(model)
        for index in self._shared:
            for unit in self._target.reader.units[index]:
                bind(modules[index], self._target.stream.resident(unit))
        if substitutes is not None:
            buffer = allocate_host_buffer(max(layout.nbytes for layout in substitutes.layouts))
            total = sum(layout.nbytes for layout in substitutes.layouts)
            done = 0
            for index, layout in enumerate(substitutes.layouts):
                if index not in self._shared:
                    substitutes.read(index, buffer)
                    fields = layout.views(buffer)
                    modules[index] = substitute_unit(modules[index], fields, device)
                    warm_up_products(modules[index])
                done += layout.nbytes
                context.progress(LoadProgress("loading the 4-bit copies", done, total))
        model.set_output_embeddings(modules[-1])
        tensors = self._target.tensors
        return Decoder(model, BoundWeights(), tensors, device=device, strict=False), modules

    def substituted_decoder(self) -> tuple[Decoder, PackedUnits, WeightCopies | None]:
        """Return a decoder with substitutes. They are made first if the cache has none.

        Return all substitutes, which are open as long as the process runs, and the 4-bit copies in
        the decoder, if weights are to be coded and can be by them.
        """
        context = self._context
        kernel = self._kernel()
        log.debug("substitutes use the %s product", kernel)
        with ExitStack() as stack:
            importance = self._importance(kernel)
            if importance is not None:
                stack.enter_context(closing(importance))
            _free_unused()  # the draft in which importance was measured: packing needs its memory
            units = open_or_pack(
                self._units(kernel, importance),
                context.spec.id,
                self._identity(kernel, is_fitted=importance is not None),
                context.spec.memory.cache,
                lambda step: context.progress(replace(step, what="making the 4-bit copies")),
            )
            _free_unused()  # the memory that quantizing took on a first start: loading needs it
            decoder, modules = self.decoder(units)
            own = {i: part for i, part in enumerate(modules) if i not in self._shared}
            copies = None
            if self._target.is_coded and (by_layer := find_copies(own)) is not None:
                copies = WeightCopies(units, by_layer)
        give_back_freed()  # packing leaves holes of its own sizes, which serving would not reuse
        return decoder, units, copies

    def _importance(self, kernel: Kernel) -> PackedUnits | None:
        """Return the importance of the input channels, from the cache or measured now.

        Return None if the settings say so or it cannot be measured, which is logged.
        """
        context = self._context
        if not context.spec.draft.calibrate:
            return None
        layouts = importance_layouts(self._target.reader.layouts, self._inputs())
        try:
            return open_or_pack(
                ImportanceUnits(layouts, lambda: self._measure(kernel)),
                context.spec.id,
                f"{context.identity}\n{describe_importance()}",
                context.spec.memory.cache,
                lambda *_: None,  # it has few bytes; measuring reports its own progress
            )
        except ModelError as error:
            log.warning("the 4-bit copies are not calibrated: %s", error)
            return None

    def _measure(self, kernel: Kernel) -> Measured:
        """Measure the importance of the input channels in substitutes that are made without it."""
        context = self._context
        began = time.perf_counter()
        start = [own for own in start_tokens(context.tokenizer) if own < context.vocab_size]
        if not start:
            raise ModelError("the tokenizer has no token with which a text begins")
        decoder, modules = self.decoder(self._units(kernel, None))
        measured = measure_importance(
            decoder, self._target.cache, self._linears(modules), start, context.progress
        )
        seconds = time.perf_counter() - began
        log.info("calibrating the 4-bit copies took %.1f s, once for this model", seconds)
        return measured

    def _units(self, kernel: Kernel, importance: UnitReader | None) -> SubstituteUnits:
        """Return a reader that makes substitutes of the target's units."""
        return SubstituteUnits(
            self._target.reader,
            self._paths,
            group=self._context.spec.draft.group,
            kernel=kernel,
            device=self._context.device.torch_device,
            dtype=self._context.dtype,
            importance=importance,
            experts=self._experts,
            check_making=self._target.check_making,
        )

    def _inputs(self) -> list[dict[str, tuple[int, ...]]]:
        """Return the shapes of the importance of units' weights: [in], or [E, in] of experts."""
        found: list[dict[str, tuple[int, ...]]] = []
        for module, paths in zip(self._modules, self._paths, strict=True):
            linears: list[Any] = [module.get_submodule(path) for path in paths]
            names = map(weight_name, paths)
            own: dict[str, tuple[int, ...]] = {
                name: (layer.in_features,) for name, layer in zip(names, linears, strict=True)
            }
            for name, is_turned in find_experts([module]).stacks.items():
                count, *sizes = module.get_parameter(name).shape
                own[name] = count, sizes[0 if is_turned else 1]
            found.append(own)
        return found

    def _linears(self, modules: Sequence[nn.Module]) -> list[dict[str, nn.Module]]:
        """Return the substitutes of units' linear layers and experts, by their weights' names.

        Fused weights that have none are left out.
        """
        found: list[dict[str, nn.Module]] = []
        for module, paths, inputs in zip(modules, self._paths, self._inputs(), strict=True):
            own = {weight_name(path): module.get_submodule(path) for path in paths}
            experts = {name: _attribute(module, name) for name in inputs.keys() - own.keys()}
            own |= {n: layers for n, layers in experts.items() if isinstance(layers, ExpertLayers)}
            found.append(own)
        return found

    def _model(self) -> Any:
        """Return the draft's model without weights."""
        return build_on_meta(self._context.config, self._context.dtype, strict=False)

    def _identity(self, kernel: Kernel, *, is_fitted: bool) -> str:
        """Return the identity of the substitutes' cache entry: their weights and their form."""
        context = self._context
        form = describe_form(
            kernel, context.spec.draft.group, context.device.torch_device, is_fitted=is_fitted
        )
        return f"{context.identity}\n{form}"

    def _has_own_head(self) -> bool:
        """Return whether the draft has a substitute of the head even if the head is resident."""
        head = self._target.reader.layouts[-1]
        group, device = self._context.spec.draft.group, self._context.device.torch_device
        return is_read_faster(substitute_bytes(head, group, device, self._kernel()), head.nbytes)

    def _kernel(self) -> Kernel:
        """Return the 4-bit kernel of the substitutes, by the shapes of the first layer."""
        linears = [m for m in self._modules[0].modules() if isinstance(m, nn.Linear)]
        shapes = [(linear.out_features, linear.in_features) for linear in linears]
        group, device = self._context.spec.draft.group, self._context.device.torch_device
        return best_kernel(shapes, group, device)


def _nodes(target: LoadedTarget) -> NodeMemory | None:
    """Return the memory of drafted rows in recurrent layers; None if there are none."""
    states = target.cache.states
    if states is None:
        return None
    shapes = {number: memory.shape for number, memory in states.layers.items()}
    return NodeMemory(shapes, target.num_nodes, states.dtype, states.device)


def _attribute(module: nn.Module, path: str) -> object:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def _modules(model: Any) -> list[nn.Module]:
    """Return the modules of a model's units: its layers and its head."""
    return [*decoder_layers(model), model.get_output_embeddings()]


def _free_unused() -> None:
    """Free models, whose parts refer to each other, and give freed memory back to the system."""
    gc.collect()
    give_back_freed()
