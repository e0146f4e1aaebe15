"""The speed of the steps of a load, and their text."""

from typing import Literal

import pytest

from engine.messages import LoadProgress
from server.metrics.load_speed import WINDOW_S, LoadMeter, step_text
from server.sizes import duration_text

MEGA = 10**6
Unit = Literal["bytes", "tokens", "steps"]


def measured(*marks: tuple[float, int], what: str = "packing", unit: Unit = "bytes") -> str:
    """Return the text of progress after steps at these times, each with its number of MB done."""
    meter = LoadMeter()
    for now, done in marks:
        step = meter.measure(LoadProgress(what, done * MEGA, 100 * MEGA, unit), now)
    return step_text(step)


@pytest.mark.parametrize(
    ("marks", "want"),
    [
        ([(5.0, 0)], "packing 0 %, 0 B of 100.0 MB"),
        ([(5.0, 0), (5.1, 10)], "packing 10 %, 10.0 MB of 100.0 MB"),
        ([(5.0, 0), (7.0, 20)], "packing 20 %, 20.0 MB of 100.0 MB, 10.0 MB/s, 8 s left"),
        # what is cached at the begin of a download is not its speed
        ([(5.0, 60), (7.0, 80)], "packing 80 %, 80.0 MB of 100.0 MB, 10.0 MB/s, 2 s left"),
        # the last seconds count
        (
            [(0.0, 0), (50.0, 1), (59.0, 46), (60.0, 51)],
            "packing 51 %, 51.0 MB of 100.0 MB, 5.0 MB/s, 10 s left",
        ),
        ([(0.0, 0), (10.0, 1)], "packing 1 %, 1.0 MB of 100.0 MB, 100.0 kB/s, 16 min left"),
        ([(0.0, 0), (10.0, 100)], "packing 100 %, 100.0 MB of 100.0 MB, 10.0 MB/s"),
        # the same step of another load begins anew
        ([(0.0, 0), (9.0, 90), (10.0, 10)], "packing 10 %, 10.0 MB of 100.0 MB"),
        ([(0.0, 5), (WINDOW_S, 5)], "packing 5 %, 5.0 MB of 100.0 MB"),
    ],
)
def test_a_step_has_its_speed_and_the_time_left(marks: list[tuple[float, int]], want: str) -> None:
    assert measured(*marks) == want


def test_the_next_step_has_a_speed_of_its_own() -> None:
    meter = LoadMeter()
    meter.measure(LoadProgress("packing", 0, 8), 0.0)
    meter.measure(LoadProgress("packing", 8, 8), 4.0)
    steps = [meter.measure(LoadProgress("measuring", n, 9, "tokens"), 4.0 + n) for n in (0, 3)]
    assert [step_text(step) for step in steps] == [
        "measuring 0 %, 0 of 9 tokens",
        "measuring 33 %, 3 of 9 tokens, 1.0 tokens/s, 6 s left",
    ]


def test_a_step_of_unknown_length_has_no_share() -> None:
    assert step_text(LoadMeter().measure(LoadProgress("searching", 0, 0), 0.0)) == "searching"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (99, "99 s"), (150, "2 min"), (5400, "90 min"), (9000, "2.5 h")],
)
def test_durations_have_the_unit_that_suits_them(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text
