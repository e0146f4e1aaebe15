"""The type in which kernels multiply."""

from typing import Any

import torch


def operand_type(dtype: torch.dtype) -> Any:
    """Return Triton's type for the operands of products of values of a type.

    It is that type, except in the interpreter, which multiplies the raw bits of bfloat16.
    """
    import triton
    import triton.language as tl

    if triton.knobs.runtime.interpret:
        return tl.float32
    return getattr(tl, str(dtype).removeprefix("torch."))
