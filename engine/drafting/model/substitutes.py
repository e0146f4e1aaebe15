"""SubSpec's substitutes: units quantized from the target's units, cached, and made into modules.

The cache holds them before any kernel's own packing: reading them back takes a copy and that
packing, but no quantizing.
"""

import mmap
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.malloc import give_back_freed
from engine.model.binder import bind
from engine.model.latent import latent_projections
from engine.model.library import replace_expert_weights
from engine.streaming.packed import PackedUnits
from engine.weights.coding.cells import Substitute
from engine.weights.expert_weights import ExpertWeights, find_experts
from engine.weights.formats import int4
from engine.weights.formats.joined import Part, join, sibling_paths, weight_copy
from engine.weights.formats.linear import (
    ExpertLayers,
    Kernel,
    expert_layers,
    linear,
    store,
    stored_tensors,
)
from engine.weights.formats.nf4 import BLOCK, Nf4Linear
from engine.weights.layout import TensorSpec, UnitLayout, UnitReader, lay_out
from engine.weights.packing import dense_layout, dense_tensors, expand

FORM_VERSION = 3  # of what `store` writes; raised when a weight is quantized differently


class SubstituteUnits(UnitReader):
    """A reader of the target's units that quantizes their linear weights and their experts.

    Biases, norms, routers and weights that `kernel` does not support on `device` are kept as they
    are. It works in host memory, because no device memory is planned for it.

    Args:
        units: the target's units.
        linears: the paths of each unit's linear layers ("" for a unit that is one itself).
        group: weights that share a scale, for the int4 kernel.
        kernel: the product that the substitutes are for.
        device: where they will compute.
        dtype: the type to which packed weights of the target are expanded.
        importance: of the input channels, one unit for each of `units`, with a tensor [in] for each
            linear weight that has its name, and [E, in] for a fused weight of experts; scales are
            fitted by it. None: by the weights alone.
        experts: the fused weights of experts.
        check_making: called before a unit is made.
    """

    def __init__(
        self,
        units: UnitReader,
        linears: Sequence[Collection[str]],
        *,
        group: int,
        kernel: Kernel,
        device: torch.device,
        dtype: torch.dtype,
        importance: UnitReader | None = None,
        experts: ExpertWeights | None = None,
        check_making: Callable[[], None] = lambda: None,
    ) -> None:
        self._units = units
        self._importance = importance
        self._check_making = check_making
        self._dtype = dtype
        self._turned = (experts or ExpertWeights()).stacks
        layouts: list[UnitLayout] = []
        for layout, paths in zip(units.layouts, linears, strict=True):
            weights = {*map(weight_name, paths), *self._turned}
            tensors: dict[str, TensorSpec] = {}
            for name, spec in dense_tensors(layout, dtype).items():
                if name in weights:
                    is_turned = self._turned.get(name, False)
                    tensors |= stored_tensors(
                        name, spec, group, device, kernel, is_turned=is_turned
                    )
                else:
                    tensors[name] = spec
            layouts.append(lay_out(layout.name, tensors))
        self.layouts = layouts

    def read(self, index: int, buffer: Tensor) -> None:
        """Fill `buffer` with unit `index`. The same weights always give the same bytes."""
        self._check_making()
        layout = self._units.layouts[index]
        dense = dense_layout(layout, self._dtype)
        own, expanded = allocate_host_buffer(layout.nbytes), allocate_host_buffer(dense.nbytes)
        self._units.read(index, own)
        fields, importance = self.layouts[index].views(buffer), self._importance_of(index)
        for name, tensor in expand(layout.views(own), dense.views(expanded)).items():
            stored = {
                f: view for f, view in fields.items() if f == name or f.startswith(f"{name}.")
            }
            is_turned = self._turned.get(name, False)
            store(tensor, name, stored, importance.get(name), is_turned=is_turned)

    def _importance_of(self, index: int) -> Mapping[str, Tensor]:
        """Return the importance of the channels of a unit's linear weights, empty without one."""
        if self._importance is None:
            return {}
        layout = self._importance.layouts[index]
        buffer = allocate_host_buffer(layout.nbytes)
        self._importance.read(index, buffer)
        return layout.views(buffer)


@dataclass(frozen=True)
class WeightCopies:
    """The 4-bit copies of a target's weights, by which the weights may be coded.

    Args:
        packed: all of them as the cache has them, one unit for each layer, and one for the head.
        by_layer: those of layers that are not resident, where the draft keeps them, by the number
            of the layer and the name of the weight; the head follows the layers. It changes
            when units move.
    """

    packed: PackedUnits
    by_layer: dict[int, Mapping[str, Substitute]]


def find_copies(modules: Mapping[int, nn.Module]) -> dict[int, Mapping[str, Substitute]] | None:
    """Return the 4-bit copies in the modules of layers, by the names of the weights.

    Those of experts are left out: their weights are coded without them. Return None if one of the
    others is kept in an order that no decoder knows.
    """
    found: dict[int, Mapping[str, Substitute]] = {}
    for layer, module in modules.items():
        copies: dict[str, Substitute] = {}
        found[layer] = copies
        experts = [own for own in module.modules() if isinstance(own, ExpertLayers)]
        of_experts = {part for own in experts for part in own.modules()}
        for path, part in module.named_modules():
            if part in of_experts:
                continue
            is_copy = isinstance(part, int4.Int4Linear | Nf4Linear | Part)
            product = part.joined.product if isinstance(part, Part) else part
            is_copy &= not isinstance(product, nn.Linear)  # a weight that has no 4-bit form
            if is_copy and "joined" not in path.split("."):
                copy = weight_copy(part)
                if copy is None:
                    return None
                copies[weight_name(path)] = copy
    return found


def allocate_host_buffer(nbytes: int) -> Tensor:
    """Return `nbytes` of memory that goes back to the system when freed, unlike the heap's."""
    return torch.frombuffer(mmap.mmap(-1, max(nbytes, 1)), dtype=torch.uint8)


def describe_form(
    kernel: Kernel, group: int, device: torch.device | None, *, is_fitted: bool
) -> str:
    """Return a text that names all that substitutes depend on besides the target's weights.

    Args:
        device: None stands for a CUDA card that this machine may not have.
        is_fitted: whether their scales are fitted by the importance of the input channels. The
            importance itself is not named: other figures change acceptance alone.
    """
    kind = "cuda" if device is None else device.type
    block = group if kernel == "int4" else BLOCK
    scales = "fitted" if is_fitted else "plain"
    return f"substitutes {FORM_VERSION} {kernel} {block} {scales} {kind}"


def linear_paths(module: nn.Module) -> list[str]:
    """Return the paths of the linear layers in a unit's module; [""] if it is linear itself.

    Those whose weight latent attention multiplies with other tensors are left out, and routers.
    """
    others, routers = latent_projections(module), find_experts([module]).others
    return [
        path
        for path, part in module.named_modules()
        if isinstance(part, nn.Linear) and part not in others and weight_name(path) not in routers
    ]


def weight_name(path: str) -> str:
    """Return the name, in its unit, of the weight of the linear layer at a path."""
    return f"{path}.weight" if path else "weight"


def substitute_unit(
    module: nn.Module, fields: Mapping[str, Tensor], device: torch.device
) -> nn.Module:
    """Return the substitute of a unit on `device`: `module` with its linear layers replaced.

    Layers with the same input share one product. Experts have a layer each in place of a fused
    weight.

    `fields` are the tensors of a unit of `SubstituteUnits`. They are copied, so their buffer may be
    used again.
    """
    paths = linear_paths(module)
    replacements: dict[str, nn.Module] = {}
    for group in sibling_paths(paths):
        replacements |= zip(group, join(fields, group, device) or (), strict=False)
    for path in paths:
        replacement = replacements.get(path) or linear(fields, path, device)
        if not path:
            return replacement
        module.set_submodule(path, replacement)
    experts = {name: expert_layers(fields, name, device) for name in find_experts([module]).stacks}
    copied = {name: layers for name, layers in experts.items() if layers is not None}
    replace_expert_weights(module, copied)
    taken = tuple(f"{path}." for path in (*paths, *copied))
    rest = {n: t.to(device, copy=True) for n, t in fields.items() if not n.startswith(taken)}
    bind(module, rest)
    return module


def warm_up_products(module: nn.Module) -> None:
    """Run each NF4 product of a unit once, so that its weight gets its final form now.

    bitsandbytes repacks a weight in its first product. The memory that this frees goes back to the
    system after each layer: over all units it is up to twice the draft's bytes (measured).
    """
    for part in module.modules():
        # Only the CPU kernel repacks; the CUDA kernel multiplies with the weight as it is.
        if isinstance(part, Nf4Linear) and not part.inner.weight.is_cuda:
            part(torch.zeros(1, part.inner.in_features, dtype=torch.bfloat16))
            give_back_freed()
