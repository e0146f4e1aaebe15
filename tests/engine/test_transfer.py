"""Tests of copies of several tensors at once, on a pretended device."""

from typing import Any

import pytest
import torch
from torch import Tensor

from engine.transfer import upload_all

CUDA: Any = torch.device("cuda", 0)
VALUES = [
    torch.tensor([1, -2, 3]),
    torch.tensor([], dtype=torch.int64),
    torch.tensor([[True, False], [False, True]]),
    torch.arange(300, dtype=torch.bfloat16).view(3, 100),
    torch.tensor(7.5),
    torch.arange(12, dtype=torch.float32).view(3, 4).T,
]


def test_on_a_cpu_nothing_is_copied() -> None:
    assert all(a is b for a, b in zip(upload_all(VALUES, torch.device("cpu")), VALUES, strict=True))


@pytest.mark.parametrize("values", [VALUES, VALUES[::-1], VALUES[:1], []])
def test_one_pinned_copy_moves_all(monkeypatch: pytest.MonkeyPatch, values: list[Tensor]) -> None:
    own_empty, own_to = torch.empty, Tensor.to
    copies: list[Tensor] = []

    def empty(size: int, *, dtype: torch.dtype, pin_memory: bool) -> Tensor:
        assert pin_memory
        return own_empty(size, dtype=dtype).fill_(99)

    def to(tensor: Tensor, *where: Any, **how: Any) -> Tensor:
        if where != (CUDA,):
            return own_to(tensor, *where, **how)
        assert how == {"non_blocking": True}
        copies.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(Tensor, "to", to)
    found = upload_all(values, CUDA)
    monkeypatch.undo()
    assert len(copies) == 1
    for one, value in zip(found, values, strict=True):
        assert one.dtype == value.dtype
        assert torch.equal(one, value)
        assert one.storage_offset() * one.itemsize % 256 == 0
