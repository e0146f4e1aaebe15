"""Tests of the number of threads that compute a model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.planning import threads
from engine.planning.threads import (
    choose_strict_threads,
    choose_threads,
    use_threads_that_keep_bits,
)


@pytest.fixture(autouse=True)
def _eight_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


def only_some_keep_bits(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    def most_of(most: int, dtype: torch.dtype) -> int:
        assert dtype == torch.bfloat16
        return max(number for number in numbers if number <= most)

    monkeypatch.setattr(threads, "threads_that_keep_bits", most_of)


@pytest.mark.parametrize(
    ("seconds", "settled"),
    [
        ({8: 1.0, 4: 2.0, 2: 0.5, 1: 0.1}, 8),  # halving stops as soon as it is not faster
        ({8: 1.0, 4: 0.97, 2: 0.5, 1: 0.1}, 8),  # such a difference is noise
        ({8: 1.0, 4: 0.9, 2: 0.9, 1: 0.1}, 4),
        ({8: 1.0, 4: 0.9, 2: 0.8, 1: 0.7}, 1),
    ],
)
def test_the_fastest_number_of_threads_is_chosen(seconds: dict[int, float], settled: int) -> None:
    assert choose_threads(lambda: seconds[torch.get_num_threads()]) == seconds[settled]
    assert torch.get_num_threads() == settled


def test_numbers_with_which_rows_change_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    only_some_keep_bits(monkeypatch, 1, 3, 7)
    use_threads_that_keep_bits(torch.bfloat16)
    assert torch.get_num_threads() == 7
    tried: list[int] = []

    def seconds() -> float:
        tried.append(torch.get_num_threads())
        return float(tried[-1])

    choose_strict_threads(seconds, torch.bfloat16, {"model_type": "left out"})
    assert tried == [7, 3, 1] and torch.get_num_threads() == 1


def load(model: dict[str, Any], seconds: dict[int, float]) -> int:
    """Return the number of threads that a load chooses where steps take these seconds."""
    torch.set_num_threads(8)
    choose_strict_threads(lambda: seconds[torch.get_num_threads()], torch.bfloat16, model)
    return torch.get_num_threads()


FAST, BUSY, SLOW = (
    {8: 1.0, 4: 1.1, 2: 2.0, 1: 4.0},
    {8: 3.0, 4: 2.4, 2: 2.2, 1: 4.0},
    {8: 4.0, 4: 1.0, 2: 1.0, 1: 1.0},
)


@pytest.mark.parametrize(
    ("first", "later", "numbers"),
    [
        (FAST, BUSY, (8, 8)),  # 4 is faster, but not by much
        (BUSY, FAST, (4, 4)),
        (FAST, SLOW, (8, 4)),
        (SLOW, FAST, (4, 4)),
    ],
)
def test_the_number_of_an_earlier_load_is_kept_unless_another_is_clearly_faster(
    first: dict[int, float],
    later: dict[int, float],
    numbers: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    only_some_keep_bits(monkeypatch, *range(1, 9))
    model = {"model_type": "kept"}
    assert (load(model, first), load(model, later)) == numbers
    assert load(model, later) == numbers[1]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"threads": 99}', '{"threads": "2"}', "{}"])
def test_a_damaged_file_is_replaced(
    content: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    only_some_keep_bits(monkeypatch, *range(1, 9))
    load({}, FAST)
    (path,) = (tmp_path / threads.FOLDER).iterdir()
    stored = path.read_text()
    path.write_text(content)
    assert load({}, FAST) == 8
    assert path.read_text() == stored
