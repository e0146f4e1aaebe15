"""Tests of the speed that an engine reports."""

import pytest

from cluster.pass_speeds import FEW_ROWS, PassSpeeds


def test_nothing_is_known_before_the_first_pass() -> None:
    speeds = PassSpeeds()
    assert (speeds.pass_seconds, speeds.row_seconds) == (0.0, 0.0)


@pytest.mark.parametrize("link_seconds", [0.0, 0.1, 5.0])
def test_rows_take_the_time_in_which_they_are_computed(link_seconds: float) -> None:
    """Also where a pass waits for its weights longer than its rows take."""
    speeds = PassSpeeds()
    for rows in (FEW_ROWS, 512, 2048):
        computing = 0.01 + rows * 1e-4
        seconds = max(computing, link_seconds)
        speeds.observe(rows, seconds, waited=seconds - computing)
    assert speeds.pass_seconds == pytest.approx(max(link_seconds, 0.01 + FEW_ROWS * 1e-4))
    assert speeds.row_seconds == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "passes",
    [
        [(4000, 0.4)],  # of prompts alone, on a replica that has just begun
        [(2000, 0.2), (4000, 0.4), (8000, 0.8)],
        [(1, 0.0064), (8, 0.0064), (16, 0.0064)],  # of answers alone
    ],
)
def test_rows_are_not_free_where_few_sizes_of_passes_have_run(
    passes: list[tuple[int, float]],
) -> None:
    speeds = PassSpeeds()
    for rows, computing in passes:
        speeds.observe(rows, 1.0, waited=1.0 - computing)
    assert speeds.row_seconds == pytest.approx(1e-4)
