"""Layers of a SubSpec draft that are the target's own where these are resident.

When units move between two passes, a layer of the draft changes with those of the target: from the
resident layer to its substitute, or back. Other layers stay as they are.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from engine.drafting.model.cuda_graphs import GraphedSteps
from engine.drafting.model.fused.fuse import fuse
from engine.drafting.model.fused.operations import Operations
from engine.drafting.model.substitutes import (
    WeightCopies,
    allocate_host_buffer,
    find_copies,
    substitute_unit,
    warm_up_products,
)
from engine.errors import ModelError
from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.model.binder import bind
from engine.model.decoder import Decoder
from engine.streaming.packed import PackedUnits
from engine.streaming.ring import LayerStream

log = logging.getLogger(__name__)


@dataclass
class SharedLayers:
    """The layers of a draft that may be the target's own. One thread calls all methods.

    Args:
        decoder: the draft's.
        numbers: the layers.
        units: the target's units of each layer.
        stream: lends the target's resident units.
        substitutes: one unit for each layer, as the cache has them; None: they were never made.
        make_layers: returns new layers without weights, for a decoder of this model.
        cache: the draft's, of which a page is used while modules are fused and steps captured.
        operations: what fused modules consist of.
        make_graphs: captures the draft's steps, with a slot of the cache that holds nothing.
        copies: those by which weights are coded, whose dictionary is kept up to date; None: none.
    """

    decoder: Decoder
    numbers: frozenset[int]
    units: Sequence[range]
    stream: LayerStream
    substitutes: PackedUnits | None
    make_layers: Callable[[], Sequence[nn.Module]]
    cache: KVCache
    operations: Operations
    make_graphs: Callable[[int], GraphedSteps | None]
    copies: WeightCopies | None
    _missing: set[int] = field(default_factory=set)  # layers without weights

    def detach(self, numbers: Iterable[int]) -> None:
        """Drop the weights of layers, so that they can be freed. `attach` has to follow."""
        fresh = self.make_layers()
        for number in self.numbers & set(numbers):
            self.decoder.layers[number].replace_inner(fresh[number])
            self._missing.add(number)
            if self.copies is not None:
                self.copies.by_layer.pop(number, None)

    def attach(self) -> bool:
        """Bind weights to the layers that `detach` left without any.

        A layer gets the target's weights if they are resident, and else its 4-bit substitute.
        Return False if a layer has no substitute, because none was made or it cannot be read.
        Raises `ModelError` if weights are coded by a substitute that cannot be read.
        """
        numbers = sorted(self._missing)
        try:
            for number in numbers:
                self._attach(number)
        except (ModelError, torch.OutOfMemoryError) as error:
            if self.copies is not None:
                raise
            log.warning("Only look-ups draft until weights have moved again: %s", error)
            return False
        try:
            fuse(self.decoder, self.cache, self.operations, numbers)
        except ModelError as error:  # the cache has no free page
            log.info("moved layers of the draft run modules of the library: %s", error)
        return True

    def capture(self) -> GraphedSteps | None:
        """Return the graphs of the draft's steps; None if it has none, or the cache has no page."""
        table = PageTable()
        try:
            if not self.cache.reserve_pages(table, 1):
                return None
            return self.make_graphs(table.pages[0] * PAGE)
        finally:
            self.cache.close(table)

    def _attach(self, number: int) -> None:
        layer = self.decoder.layers[number]
        if all(map(self.stream.is_resident, self.units[number])):
            for unit in self.units[number]:
                bind(layer.inner, self.stream.resident(unit))
        elif self.substitutes is None:
            raise ModelError(f"layer {number} has left the device and has no 4-bit copy")
        else:
            layout = self.substitutes.layouts[number]
            buffer = allocate_host_buffer(layout.nbytes)
            self.substitutes.read(number, buffer)
            fields = layout.views(buffer)
            layer.replace_inner(substitute_unit(layer.inner, fields, self.decoder.device))
            warm_up_products(layer.inner)
            if self.copies is not None:
                self.copies.by_layer.update(find_copies({number: layer.inner}) or {})
        self._missing.discard(number)
