"""Fixtures of the tests in Triton's interpreter."""

from typing import Any

import numpy as np
import pytest


@pytest.fixture
def dot_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `tl.dot` of the interpreter sum up products in ascending order, each row for itself.

    numpy's product has other bits for other numbers of rows, which a GPU's instructions do not.
    """
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, d: Any, *_: Any) -> Any:
        left, right = a.data.astype(d.data.dtype), b.data.astype(d.data.dtype)
        found = np.zeros_like(d.data)
        for inner in range(left.shape[-1]):
            found += left[..., inner, None] * right[..., inner, None, :]
        return interpreter.TensorHandle(found + d.data, d.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


@pytest.fixture
def bfloat16_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the interpreter round to bfloat16 as a GPU does. It cuts the lower bits off."""
    import triton.language as tl
    from triton.runtime import interpreter

    plain = interpreter.InterpreterBuilder.cast_impl

    def cast(self: Any, source: Any, wanted: Any) -> Any:
        if wanted.scalar != tl.bfloat16 or source.dtype.scalar not in (tl.float32, tl.float16):
            return plain(self, source, wanted)
        bits = source.data.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return interpreter.TensorHandle(rounded.astype(np.uint16), tl.bfloat16)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "cast_impl", cast)
