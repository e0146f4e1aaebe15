"""4-bit linear layers that a draft uses in place of the target's dense ones (SubSpec).

If the kernel does not support the shape of a layer, the layer stays dense.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from engine.weights.formats import int4, nf4
from engine.weights.layout import TensorSpec, UnitLayout
from engine.weights.packing import dense_tensors

Kernel = Literal["int4", "nf4"]


def stored_tensors(
    name: str,
    spec: TensorSpec,
    group: int,
    device: torch.device | None,
    kernel: Kernel,
) -> dict[str, TensorSpec]:
    """Return the tensors that store the substitute of the linear weight `name`.

    They are 4-bit, or `spec` itself if `kernel` does not support the shape on `device`.

    Args:
        device: None stands for a CUDA card that this machine may not have, of a recent kind.
    """
    _, shape = spec
    out_features, in_features = shape
    if not supports(in_features, out_features, group, device, kernel):
        return {name: spec}
    if kernel == "nf4":
        return nf4.packed_tensors(name, shape)
    return int4.packed_tensors(name, shape, group)


def store(
    tensor: Tensor, name: str, fields: Mapping[str, Tensor], importance: Tensor | None = None
) -> None:
    """Fill the fields that store the tensor `name`. Equal arguments give equal bytes.

    Args:
        importance: the mean square of each input channel [in], by which the scales of a quantized
            weight are fitted; None: they are chosen by the weight alone.
    """
    if name in fields:
        fields[name].copy_(tensor)
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
    layout: UnitLayout, group: int, device: torch.device | None, kernel: Kernel
) -> int:
    """Return the bytes that a unit's substitute takes on the device with this kernel.

    Matrices become 4-bit if the kernel supports their shape; the rest of the unit is not changed.
    The substitute of a packed unit is made from its dense form.
    """
    total = 0
    for spec in dense_tensors(layout, torch.bfloat16).values():
        form = {"": spec}
        if _is_matrix(*spec):
            form = stored_tensors("", spec, group, device, kernel)
        total += _nbytes(form)
    return total


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
