"""Comparison of tensors by their bits."""

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_INTEGERS = {4: torch.int32, 2: torch.int16}


def equal_bits(found: Tensor, wanted: Tensor) -> bool:
    """Return whether all values have the same bits, but for those of NaN.

    torch itself gives NaN other bits in the last values of a tensor than in the others.
    """
    integers, is_nan = _INTEGERS[wanted.dtype.itemsize], wanted.isnan()
    same = found.view(integers) == wanted.view(integers)
    return torch.equal(found.isnan(), is_nan) and bool((same | is_nan).all())
