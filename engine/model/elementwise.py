"""Elementwise functions whose result for a row does not depend on the row's place in the tile.

On the CPU, PyTorch splits an elementwise operation into equal pieces, one for each thread. The last
elements of a piece, which do not fill a vector block, are computed by a scalar function. For silu,
sigmoid, softplus and the tanh form of gelu, that function rounds differently from the vector
function: for 2 to 22 % of float32 values, and for 4 of the 65,280 finite bfloat16 values (gelu).
Here every piece consists of whole blocks, so the scalar function is never used.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from math import ceil, lcm
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# PyTorch makes min(threads, ceil(elements / PIECE)) pieces (its GRAIN_SIZE). For gelu with more
# than 16,384 elements, it makes one piece per thread.
PIECE = 32768
# A multiple of the elements that one step of PyTorch's vector loop takes: 64 bfloat16 values with
# AVX-512.
BLOCK = 64


# Functions of this kind that models call, beside the modules of activation functions.
_FUNCTIONS = frozenset(
    {F.gelu, F.sigmoid, F.silu, F.softplus, torch.sigmoid, Tensor.sigmoid, torch.special.expit}
)


_CALL = re.compile(r"\b(gelu|sigmoid|silu|softplus|expit)\(")
# Their modules are activation functions, which `library.py` changes one by one.
_ACTIVATIONS = ("torch.", "transformers.activations")


def calls_functions(module: nn.Module) -> bool:
    """Return whether the library's code of a module calls such functions itself.

    Norms with a gate do, and attention whose output has one.
    """
    kinds: set[Any] = {type(part) for part in module.modules()}
    return any(map(_calls, kinds))


@cache
def _calls(kind: Any) -> bool:
    is_activation = kind.__module__.startswith(_ACTIVATIONS)
    return not is_activation and _CALL.search(inspect.getsource(kind)) is not None


class WholeBlocks(TorchFunctionMode):
    """A context in which these functions are computed in pieces of whole blocks, wherever called.

    It takes 0.1 ms for a layer, so it is for layers that call such functions (`calls_functions`).
    """

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        inputs: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call a function of torch."""
        if function in _FUNCTIONS and isinstance(inputs[0], Tensor):
            own = partial(_call, function, inputs[1:], named or {})
            return apply_in_blocks(own, inputs[0])
        return function(*inputs, **(named or {}))


def _call(
    function: Callable[..., Any], others: Sequence[Any], named: Mapping[str, Any], x: Tensor
) -> Any:
    return function(x, *others, **named)


def apply_in_blocks(function: Callable[[Tensor], Tensor], x: Tensor, *, inputs: int = 1) -> Tensor:
    """Return `function(x)` [..., W], computed in pieces of whole blocks if `x` is on the CPU.

    Args:
        function: computes each element of its result from `inputs` neighbouring elements of the
            last dimension of its argument.
        x: [..., W * inputs].
        inputs: the number of input elements for each output element.
    """
    if x.device.type != "cpu":
        return function(x)
    size = x.numel() // inputs
    padding = _size_in_blocks(size, torch.get_num_threads()) - size
    # Rows that are not contiguous in memory are computed one by one: each must have whole blocks.
    rows_have_blocks = x.stride(-1) == 1 and x.shape[-1] % (BLOCK * inputs) == 0
    if not padding and (rows_have_blocks or x.is_contiguous()):
        return function(x)
    flat = F.pad(x.reshape(-1), (0, padding * inputs))
    return function(flat)[:size].view(*x.shape[:-1], x.shape[-1] // inputs)


def _size_in_blocks(size: int, threads: int) -> int:
    """Return the smallest number from `size` on for which all pieces consist of whole blocks."""
    while True:
        pieces = min(threads, ceil(size / PIECE))
        missing = -size % (BLOCK * lcm(pieces, threads))
        if not missing:
            return size
        size += missing
