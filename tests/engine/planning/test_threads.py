"""Tests of the number of threads that compute a model."""

from collections.abc import Iterator

import pytest
import torch

from engine.planning import threads
from engine.planning.threads import choose_threads, use_threads_that_keep_bits


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
    choose_threads(lambda: seconds[torch.get_num_threads()], None)
    assert torch.get_num_threads() == settled


def test_numbers_with_which_rows_change_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    only_some_keep_bits(monkeypatch, 1, 3, 7)
    use_threads_that_keep_bits(torch.bfloat16)
    assert torch.get_num_threads() == 7
    tried: list[int] = []

    def seconds() -> float:
        tried.append(torch.get_num_threads())
        return float(tried[-1])

    choose_threads(seconds, torch.bfloat16)
    assert tried == [7, 3, 1] and torch.get_num_threads() == 1
