"""4-bit linear layers that a draft uses in place of the target's dense ones (SubSpec).

If the kernel does not support the shape of a layer, the layer stays dense. The fused weights of
experts become a linear layer for each expert.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from engine.triton_kernels import expert_product
from engine.triton_kernels.expert_product import ExpertBlocks
from engine.weights.expert_weights import ExpertWeights
from engine.weights.formats import int4, nf4
from engine.weights.layout import TensorSpec, UnitLayout, lay_out
from engine.weights.packing import dense_tensors

Kernel = Literal["int4", "nf4"]


def stored_tensors(
    name: str,
    spec: TensorSpec,
    group: int,
    device: torch.device | None,
    kernel: Kernel,
    *,
    is_turned: bool = False,
) -> dict[str, TensorSpec]:
    """Return the tensors that store the substitute of the weight `name`, [out, in] or [E, out, in].

    They are 4-bit, or `spec` itself if `kernel` does not support the shape on `device`.

    Args:
        device: None stands for a CUDA card that this machine may not have, of a recent kind.
        is_turned: whether inputs come before outputs in the shape.
    """
    _, shape = spec
    *experts, out_features, in_features = shape
    if is_turned:
        out_features, in_features = in_features, out_features
    if not supports(in_features, out_features, group, device, kernel):
        return {name: spec}
    matrix = (out_features, in_features)
    if kernel == "nf4":
        packed = nf4.packed_tensors(name, matrix)
    else:
        packed = int4.packed_tensors(name, matrix, group)
    return {field: (dtype, (*experts, *size)) for field, (dtype, size) in packed.items()}


def store(
    tensor: Tensor,
    name: str,
    fields: Mapping[str, Tensor],
    importance: Tensor | None = None,
    *,
    is_turned: bool = False,
) -> None:
    """Fill the fields that store the tensor `name`. Equal arguments give equal bytes.

    Args:
        fields: those of `stored_tensors`.
        importance: the mean square of each input channel, [in] or [E, in], by which the scales of a
            quantized weight are fitted; None: they are chosen by the weight alone.
        is_turned: whether the tensor is [in, out] or [E, in, out].
    """
    if name in fields:
        fields[name].copy_(tensor)
    elif tensor.dim() > 2:
        for expert, matrix in enumerate(tensor):
            own = {field: view[expert] for field, view in fields.items()}
            weights = None if importance is None else importance[expert]
            store(matrix, name, own, weights, is_turned=is_turned)
    elif is_turned:
        store(tensor.T.contiguous(), name, fields, importance)
    elif name + nf4.PACKED in fields:
        packed, absmax = fields[name + nf4.PACKED], fields[name + nf4.ABSMAX]
        nf4.quantize(tensor, packed, absmax, importance)
    else:
        packed, scales = fields[name + int4.PACKED], fields[name + int4.SCALES]
        int4.quantize(tensor, packed, scales, importance)


def linear(fields: Mapping[str, Tensor], path: str, device: torch.device) -> nn.Module:
    """Return the linear layer at `path` of a unit ("": the unit itself), copied to `device`.

    `fields` are the tensors of the unit.
    """
    prefix = f"{path}." if path else ""
    weight = f"{prefix}weight"
    own = {
        name.removeprefix(prefix): tensor.detach().to(device, copy=True)
        for name, tensor in fields.items()
        if name == f"{prefix}bias" or name == weight or name.startswith(f"{weight}.")
    }
    return _layer_of(own)


class ExpertLayers(nn.ModuleList):
    """The linear layers of the experts of a mixture, in their order, in place of a fused weight.

    Where a kernel of ours multiplies with all of them at once, they are views of one weight.
    """

    def __init__(self, layers: Iterable[nn.Module], fields: Mapping[str, Tensor]) -> None:
        """Take a layer for each expert, and the fields of all of them together."""
        super().__init__(layers)
        self._is_apart = False
        first = self[0]
        self._fields = dict(fields)
        if not isinstance(first, int4.Int4Linear) or not first.is_in_row_order:
            self._fields.clear()  # a kernel keeps the weights in an order of its own

    @property
    def is_grouped(self) -> bool:
        """Whether one kernel may multiply with the weights of all experts."""
        return bool(self._fields) and not self._is_apart

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Let each expert's layer be called within the block, for example to see its inputs."""
        self._is_apart = True
        try:
            yield
        finally:
            self._is_apart = False

    def multiply(self, rows: Tensor, bias: Tensor | None, blocks: ExpertBlocks) -> Tensor:
        """Return the product [places, out] for rows [rows, in] or [places, in].

        Args:
            bias: [experts, out]; None if there is none.
        """
        pairs, scales = (self._fields[f"weight{own}"] for own in (int4.PACKED, int4.SCALES))
        return expert_product.multiply(rows, pairs, scales, bias, blocks)


def expert_layers(
    fields: Mapping[str, Tensor], name: str, device: torch.device
) -> ExpertLayers | None:
    """Return the layers of the fused weight `name` of a unit, copied to `device`.

    Return None if the weight is stored dense.
    """
    if name in fields:
        return None
    suffixes = [field.removeprefix(name) for field in fields if field.startswith(f"{name}.")]
    own = {f"weight{suffix}": fields[name + suffix].to(device, copy=True) for suffix in suffixes}
    experts = zip(*own.values(), strict=True)
    layers = (_layer_of(dict(zip(own, parts, strict=True))) for parts in experts)
    return ExpertLayers(layers, own)


def _layer_of(own: Mapping[str, Tensor]) -> nn.Module:
    """Return the layer with these fields on its device, which are not copied."""
    bias = own.get("bias")
    if "weight" in own:
        rows, columns = own["weight"].shape
        layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
        layer.requires_grad_(False).load_state_dict(own, assign=True)
        return layer
    if "weight" + nf4.PACKED in own:
        return nf4.Nf4Linear(own["weight" + nf4.PACKED], own["weight" + nf4.ABSMAX], bias)
    return int4.Int4Linear(own["weight" + int4.PACKED], own["weight" + int4.SCALES], bias)


def substitute(
    weight: Tensor, bias: Tensor | None, group: int, device: torch.device, kernel: Kernel
) -> nn.Module:
    """Return the 4-bit version of a linear layer on `device`, or a dense one for other shapes.

    `weight` [out, in] and `bias` [out] are float, on any device. They are copied, so their memory
    may be used again.
    """
    spec = (weight.dtype, tuple(weight.shape))
    wanted = stored_tensors("weight", spec, group, device, kernel)
    fields = {
        name: torch.empty(shape, dtype=dtype, device=weight.device)
        for name, (dtype, shape) in wanted.items()
    }
    store(weight.detach(), "weight", fields)
    return linear(fields if bias is None else {**fields, "bias": bias}, "", device)


def best_kernel(
    shapes: Sequence[tuple[int, int]], group: int, device: torch.device | None
) -> Kernel:
    """Return the kernel for weights of `shapes` [(out, in)]: int4, unless nf4 supports more.

    With scales that are fitted to the inputs, int4 is nearer to the target than nf4: divergence .09
    in groups of 32 and .14 in groups of 64 (the bits of nf4) against .21, on a real model. A step
    of nf4 takes 0.55 to 0.9 of the time on a CPU, which is worth less while weights travel.
    """
    taken = {
        kernel: sum(supports(columns, rows, group, device, kernel) for rows, columns in shapes)
        for kernel in available_kernels()
    }
    return max(taken, key=taken.__getitem__)  # the first of equal ones is int4


def available_kernels() -> list[Kernel]:
    """Return the names of the kernels whose packages are installed."""
    return ["int4", "nf4"] if nf4.is_available() else ["int4"]


def supports(
    in_features: int, out_features: int, group: int, device: torch.device | None, kernel: Kernel
) -> bool:
    """Return whether `kernel` supports weights of this shape on `device`."""
    if kernel == "nf4":
        return nf4.is_available() and nf4.Nf4Linear.supports(in_features, out_features)
    return int4.supports(in_features, out_features, group, device)


def matrix_shapes(layout: UnitLayout) -> list[tuple[int, int]]:
    """Return the shapes (out, in) of a unit's dense matrices, which its substitute quantizes."""
    specs = dense_tensors(layout, torch.bfloat16).values()
    return [(shape[0], shape[1]) for dtype, shape in specs if _is_matrix(dtype, shape)]


def substitute_bytes(
    layout: UnitLayout,
    group: int,
    device: torch.device | None,
    kernel: Kernel,
    experts: ExpertWeights | None = None,
) -> int:
    """Return the bytes that a unit's substitute takes on the device with this kernel.

    Matrices become 4-bit if the kernel supports their shape, and so do the fused weights in
    `experts`; the rest of the unit is not changed. The substitute of a packed unit is made from its
    dense form.
    """
    known = experts or ExpertWeights()
    total = 0
    for name, spec in dense_tensors(layout, torch.bfloat16).items():
        form = {name: spec}
        if name in known.stacks or (_is_matrix(*spec) and name not in known.others):
            is_turned = known.stacks.get(name, False)
            form = stored_tensors(name, spec, group, device, kernel, is_turned=is_turned)
        total += _nbytes(form)
    return total


def without_experts(layout: UnitLayout, experts: ExpertWeights) -> UnitLayout:
    """Return the layout of a unit without its fused weights of experts."""
    dense = dense_tensors(layout, torch.bfloat16).items()
    return lay_out(layout.name, {n: spec for n, spec in dense if n not in experts.stacks})


def _is_matrix(dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and dtype.is_floating_point


def is_read_faster(substitute: int, unit: int) -> bool:
    """Return whether a draft should read a head's substitute where the head itself is resident.

    Each draft step reads the head, which is a fourth of a 7 B model's substitutes. The sizes are in
    bytes; the substitute of a head that no kernel supports is as large as the head.
    """
    return 2 * substitute <= unit


def _nbytes(fields: Mapping[str, TensorSpec]) -> int:
    return sum(torch.Size(shape).numel() * dtype.itemsize for dtype, shape in fields.values())
