"""Low-bit copies of the target's own layers as the draft, on the target's KV cache.

Every streamed layer has a 4-bit substitute on the device; target and draft share resident layers.
The draft reads the exact KV of the verified prefix and writes its own into scratch slots.
"""

import gc
import logging
from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import dataclass

from torch import nn

from engine.drafting.method import DraftContext, LoadedTarget
from engine.drafting.model.draft_cache import SharedCache
from engine.drafting.model.draft_model import BoundWeights, DraftModel
from engine.drafting.model.kernel_choice import fastest_kernel
from engine.drafting.model.substitutes import (
    SubstituteUnits,
    allocate_host_buffer,
    describe_form,
    linear_paths,
    substitute_unit,
    warm_up_products,
)
from engine.malloc import give_back_freed
from engine.model.decoder import Decoder
from engine.model.library import bind, build_on_meta
from engine.streaming.packed import PackedUnits
from engine.streaming.packed_cache import is_cached, open_or_pack
from engine.weights.formats.linear import Kernel, available_kernels
from engine.weights.layout import UnitReader
from engine.weights.outline import decoder_layers

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelfDraft:
    """The prepared SubSpec method. Nothing is quantized before `build`."""

    context: DraftContext

    def build(self, target: LoadedTarget) -> DraftModel:
        """Build a model of the target's resident units and of substitutes for all others."""
        context, stream = self.context, target.stream
        model = build_on_meta(context.config, context.dtype, strict=False)
        modules = [*decoder_layers(model), model.get_output_embeddings()]  # one unit each
        # Resident units that are packed and expanded during a pass cannot be shared.
        shares = target.decoder.weights is stream
        shared = [i for i in range(len(modules)) if shares and stream.is_resident(i)]
        if len(shared) < len(modules):
            self._substitute(modules, shared, target.reader)
        for index in shared:
            bind(modules[index], stream.resident(index))
        model.set_output_embeddings(modules[-1])
        decoder = Decoder(
            model, BoundWeights(), target.tensors, device=context.device.torch_device, strict=False
        )
        caches, capture = SharedCache(target.cache), context.device.capture()
        return DraftModel(
            context.method, decoder, caches, context.bounds, context.vocab_size, capture
        )

    def _substitute(
        self, modules: list[nn.Module], shared: Collection[int], reader: UnitReader
    ) -> None:
        """Replace all modules that are not shared by their substitutes, in place."""
        context, device = self.context, self.context.device.torch_device
        with closing(self._packed(reader, modules)) as units:
            gc.collect()
            give_back_freed()  # the memory that quantizing took on a first start: loading needs it
            buffer = allocate_host_buffer(max(layout.nbytes for layout in units.layouts))
            for index, layout in enumerate(units.layouts):
                if index not in shared:
                    units.read(index, buffer)
                    fields = layout.views(buffer)
                    modules[index] = substitute_unit(modules[index], fields, device)
                    warm_up_products(modules[index])
                context.progress("loading the substitutes", index + 1, len(modules))
        give_back_freed()  # packing leaves holes of its own sizes, which serving would not reuse

    def _packed(self, reader: UnitReader, modules: Sequence[nn.Module]) -> PackedUnits:
        """Return all substitutes from the cache of packed weights, and make them if it has none."""
        context = self.context
        kernel = self._kernel(modules[0])
        log.debug("substitutes use the %s product", kernel)
        units = SubstituteUnits(
            reader,
            [linear_paths(module) for module in modules],
            group=context.spec.draft.group,
            kernel=kernel,
            device=context.device.torch_device,
            dtype=context.dtype,
        )
        return open_or_pack(
            units,
            context.spec.id,
            self._identity(kernel),
            context.spec.memory.cache,
            lambda _, done, total: context.progress("making the substitutes", done, total),
        )

    def _identity(self, kernel: Kernel) -> str:
        """Return the identity of the substitutes' cache entry: their weights and their form."""
        context = self.context
        form = describe_form(kernel, context.spec.draft.group, context.device.kind)
        return f"{context.identity}\n{form}"

    def _kernel(self, layer: nn.Module) -> Kernel:
        """Return the 4-bit kernel that is fastest here for the rows of a draft step.

        It is measured once for each kind of device; later the kernel of the cached substitutes is
        used. If it were measured again, kernels of nearly equal speed would alternate on a busy
        machine, and substitutes for each would be made and take space in the cache.
        """
        for kernel in available_kernels():
            if is_cached(self.context.spec.id, self._identity(kernel)):
                return kernel
        linears = [m for m in layer.modules() if isinstance(m, nn.Linear)]
        shapes = [(linear.out_features, linear.in_features) for linear in linears]
        return fastest_kernel(
            shapes, self.context.bounds.width, self.context.device, self.context.spec.draft.group
        )
