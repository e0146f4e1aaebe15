"""Linear layers with the same input, computed by one product of their joined weights.

A draft step multiplies few rows, so the time of a small product is that of starting it.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.weights.coding.cells import CodeOrder, Substitute
from engine.weights.formats import int4, nf4
from engine.weights.formats.linear import Kernel, linear

# Names of layers with the same input, in the order in which they are called.
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
# The dimension of each field that counts outputs.
_DIMENSIONS = {
    "weight": 0,
    f"weight{int4.PACKED}": 0,
    f"weight{int4.SCALES}": 1,
    f"weight{nf4.PACKED}": 0,
    f"weight{nf4.ABSMAX}": 0,
    "bias": 0,
}


class JoinedLinear(nn.Module):
    """The product of several layers, whose outputs follow each other in its own."""

    def __init__(self, product: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__()
        self.product = product
        self._sizes = list(sizes)
        self._rows: Tensor | None = None
        self._results: dict[int, Tensor] = {}  # outputs for `_rows` that were not asked for yet

    def first_row(self, index: int) -> int:
        """Return the row of the product's weight that is the first of one of the layers."""
        return sum(self._sizes[:index])

    def result(self, index: int, rows: Tensor) -> Tensor:
        """Return the output of one of the layers. The product runs once for all of them."""
        if rows is not self._rows or index not in self._results:
            self._rows = rows
            parts = torch.split(self.product(rows), self._sizes, dim=-1)
            self._results = dict(enumerate(parts))
        found = self._results.pop(index)
        if not self._results:
            self._rows = None
        return found


class Part(nn.Module):
    """One of the layers of a `JoinedLinear`."""

    def __init__(self, joined: JoinedLinear, index: int) -> None:
        super().__init__()
        self.joined = joined
        self._index = index

    @property
    def first_row(self) -> int:
        """Return the row of the product's weight that is the layer's first one."""
        return self.joined.first_row(self._index)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the layer's output [..., out] for `rows` [..., in]."""
        return self.joined.result(self._index, rows)


def weight_copy(layer: nn.Module) -> Substitute | None:
    """Return the 4-bit weight of a layer, where it is kept; None if it is of another kind.

    The layer may be a part of a product. The order of its codes must be known: that of an nf4
    weight is known on a GPU alone, because on a CPU bitsandbytes packs it again.
    """
    first = 0
    if isinstance(layer, Part):
        first = layer.first_row
        layer = layer.joined.product
    if isinstance(layer, nf4.Nf4Linear) and knows_order("nf4", layer.codes.device):
        return Substitute(layer.codes, layer.absmax, None, first)
    if not isinstance(layer, int4.Int4Linear):
        return None
    if layer.is_in_row_order:
        return Substitute(layer.weight, layer.scales_and_zeros, None, first)
    order = None
    if layer.weight.device.type == "cpu":
        order = int4.cpu_order(layer.out_features, layer.in_features)
    if order is None:
        return None
    return Substitute(layer.weight, layer.scales_and_zeros, CodeOrder(*order), first)


def knows_order(kernel: Kernel, device: torch.device | None) -> bool:
    """Return whether the order is known in which a device keeps the codes of this kernel.

    Args:
        device: None stands for a CUDA card that this machine may not have, of a recent kind.
    """
    return kernel == "int4" or device is None or device.type != "cpu"


class Beside(nn.Module):
    """Layers with the same input, whose outputs [..., out] are put beside each other."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the outputs of all layers, for `rows` [..., in]."""
        return torch.cat([layer(rows) for layer in self.layers], dim=-1)


class Overlay(nn.Module):
    """A product with a weight [out, in] and a bias [out] that other modules own."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, rows: Tensor) -> Tensor:
        """Return the output [..., out] for `rows` [..., in]."""
        return F.linear(rows, self.weight, self.bias)


def sibling_paths(paths: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the groups of these paths of linear layers that can share one product."""
    known, found = set(paths), []
    for path in paths:
        parent, dot, name = path.rpartition(".")
        for names in SIBLINGS:
            group = tuple(f"{parent}{dot}{own}" for own in names)
            if name == names[0] and known.issuperset(group):
                found.append(group)
    return found


def join(
    fields: Mapping[str, Tensor], paths: Sequence[str], device: torch.device
) -> list[Part] | None:
    """Return layers on `device` that share one product, or None if their forms differ.

    Args:
        fields: the tensors of the unit, as `linear` takes them.
        paths: the paths of the layers in the unit.
    """
    own = [_fields_at(fields, path) for path in paths]
    sizes = [next(iter(part.values())).shape[0] for part in own]
    names = own[0].keys()
    if any(part.keys() != names or not _fit(part, own[0]) for part in own):
        return None
    joined = {
        name: torch.cat([part[name] for part in own], _DIMENSIONS[name])
        for name in sorted(names, key=list(_DIMENSIONS).index)
    }
    product = JoinedLinear(linear(joined, "", device), sizes)
    return [Part(product, index) for index in range(len(paths))]


def beside(layers: Sequence[nn.Module]) -> nn.Module:
    """Return a module with the outputs of several layers with the same input, side by side.

    It runs one product where the layers are parts of one, or their weights follow each other in
    memory, and otherwise one for each layer. No weight is copied.
    """
    first = layers[0]
    if len(layers) == 1:
        return first
    if isinstance(first, Part):
        return first.joined.product
    linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
    if len(linears) == len(layers):
        weight = _adjacent([layer.weight for layer in linears])
        biases: list[Tensor] = [layer.bias for layer in linears if layer.bias is not None]
        if weight is not None and len(biases) in (0, len(layers)):
            return Overlay(weight, torch.cat(biases) if biases else None)
    return Beside(layers)


def _fields_at(fields: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    """Return the fields of the linear layer at a path, its weight's first."""
    names = (f"{path}.{name}" for name in _DIMENSIONS)
    return {name.removeprefix(f"{path}."): fields[name] for name in names if name in fields}


def _fit(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    """Return whether fields differ in the number of outputs at most."""
    return all(
        one[name].dtype == other[name].dtype
        and _without(one[name].shape, _DIMENSIONS[name])
        == _without(other[name].shape, _DIMENSIONS[name])
        for name in one
    )


def _without(shape: torch.Size, dimension: int) -> tuple[int, ...]:
    return tuple(size for index, size in enumerate(shape) if index != dimension)


def _adjacent(weights: Sequence[Tensor]) -> Tensor | None:
    """Return a view of weights [out, in] that follow each other in memory; None if they do not."""
    first = weights[0]
    end = first.data_ptr()
    for weight in weights:
        is_next = weight.data_ptr() == end and weight.is_contiguous()
        if not is_next or weight.dtype != first.dtype or weight.shape[1:] != first.shape[1:]:
            return None
        if weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return None
        end += weight.nbytes
    rows = sum(len(weight) for weight in weights)
    return torch.as_strided(first.detach(), (rows, first.shape[1]), first.stride())
