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
