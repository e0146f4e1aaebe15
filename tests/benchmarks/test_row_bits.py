"""Tests that the search for rows with other bits finds each circumstance that changes them.

tests/gpu/test_rows_cuda.py runs the same functions on a CUDA device.
"""

import threading
from collections.abc import Callable
from itertools import count

import pytest
import torch
from torch import Tensor

from benchmarks.row_bits import linear, measure, products

CPU = torch.device("cpu")
SHAPES = {"small": (96, 64)}
TINY = 1e-2


def by_place(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(rows, weight, bias) + torch.arange(len(rows))[:, None] * TINY


def by_other_rows(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(rows, weight, bias) + rows.float().sum() * TINY


def by_address_of_the_weight(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(rows, weight, bias) + (weight.storage_offset() * weight.itemsize == 16)


def by_address_of_the_rows(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(rows, weight, bias) + (rows.storage_offset() * rows.itemsize == 64)


def by_what_runs_beside(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(rows, weight, bias) + threading.active_count()


def by_the_call() -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    calls = count()
    return lambda rows, weight, bias: linear(rows, weight, bias) + next(calls)


@pytest.mark.parametrize(
    ("multiply", "circumstances"),
    [
        (linear, set()),
        (by_place, {"other places 0", "other places 1", "other places 2"}),
        (by_other_rows, {"other rows random", "other rows zero", "other rows large"}),
        (by_address_of_the_weight, {"weight 16 B further"}),
        (by_address_of_the_rows, {"rows 64 B further"}),
        (by_what_runs_beside, {"beside other work"}),
        (by_the_call(), None),  # all of them
    ],
)
def test_the_circumstances_in_which_rows_change_are_found(
    multiply: Callable[[Tensor, Tensor, Tensor | None], Tensor], circumstances: set[str] | None
) -> None:
    for name, weight, bias in products(CPU, SHAPES, (torch.bfloat16, torch.float32)):
        found = measure(multiply, name, weight, bias)
        changed = {own for own, rows in found.changed.items() if rows}
        # The sum of all rows depends on their order too, by its rounding.
        permuted = {own for own in changed if own.startswith("other places")}
        assert changed - (permuted if multiply is by_other_rows else set()) == (
            found.changed.keys() if circumstances is None else circumstances
        ), str(found)
        assert found.holds == (circumstances == set())


def test_the_report_names_what_holds_and_what_does_not() -> None:
    (name, weight, bias), *_ = products(CPU, SHAPES, (torch.bfloat16,))
    text = str(measure(by_address_of_the_weight, name, weight, bias))
    assert text.startswith(
        "small, bfloat16: weight 16 B further: 64 rows changed; the same bits in"
    )
    assert "another" not in text and "beside other work" in text
