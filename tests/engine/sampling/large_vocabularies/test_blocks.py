"""Tests of finding the best values of long rows by their blocks, against a full search."""

import pytest
import torch

from engine.sampling.large_vocabularies.blocks import (
    BLOCK,
    Matrix,
    Rows,
    argmax_of_rows,
    best_blocks,
    best_of_blocks,
    whole_blocks,
)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 5_000])
def test_rows_are_padded_to_whole_blocks(size: int) -> None:
    rows = torch.randn(3, size)
    whole = whole_blocks(rows)
    assert whole.shape[-1] % BLOCK == 0
    assert whole.shape[-1] - size < BLOCK
    assert torch.equal(whole[:, :size], rows)
    assert (whole[:, size:] == -torch.inf).all()


@pytest.mark.parametrize("steps", [1, 2, 1_000])
def test_argmax_of_rows_finds_the_first_best_value(steps: int) -> None:
    generator = torch.Generator().manual_seed(steps)
    rows = torch.randint(steps, (50, 640), generator=generator).float()
    assert torch.equal(argmax_of_rows(Rows.of(rows)), rows.argmax(-1))


def test_every_value_above_the_rest_is_selected() -> None:
    rows = torch.randn(20, 64 * 64, generator=torch.Generator().manual_seed(0))
    for count in (1, 5, 63):
        selection = best_blocks(Rows.of(rows), count)
        assert selection.values.shape == selection.ids.shape == (20, count * BLOCK)
        assert torch.equal(selection.values, rows.gather(1, selection.ids))
        assert (selection.ids.diff(dim=-1) > 0).all()
        left_out = rows.scatter(1, selection.ids, -torch.inf).amax(-1, keepdim=True)
        assert torch.equal(left_out, selection.rest)
        expected = rows.topk(count).values
        assert torch.equal(selection.values.topk(count).values, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rows_can_be_selected_in_any_order(dtype: torch.dtype) -> None:
    rows = torch.randn(9, 130, generator=torch.Generator().manual_seed(1)).to(dtype)
    matrix = Matrix(rows)
    wide = torch.promote_types(dtype, torch.float32)
    for where in ([4], [0, 7], [2, 1], [8]):
        some = matrix.rows(where)
        assert some.whole().dtype == some.best.dtype == wide
        assert torch.equal(some.whole()[:, :130], rows[where].to(wide))
        assert torch.equal(some.best, best_of_blocks(whole_blocks(rows[where])).to(wide))
        first = some.only(torch.tensor([0]))
        assert torch.equal(
            first.at(torch.tensor([0]), torch.tensor([99])), rows[where[0], [99]].to(wide)
        )
        assert torch.equal(first.every(2)[0, 1], some.whole()[0, 2 * BLOCK :])
