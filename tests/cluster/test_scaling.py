"""Tests of the number of replicas: by queue waits, and by idle time."""

from cluster.queue_waits import WINDOW_SECONDS, QueueWaits, WaitFigures
from cluster.scaling import Scaling


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def waits(limit: float = 2.0) -> tuple[QueueWaits, Clock]:
    clock = Clock()
    return QueueWaits(limit, clock), clock


def test_waits_are_counted_from_the_arrival_to_the_first_pass() -> None:
    own, clock = waits()
    own.arrive("a")
    own.arrive("b")
    clock.now += 1.0
    own.begin("a")
    clock.now += 1.5
    own.begin("b")
    own.begin("b")  # each report of its prompt
    assert own.figures() == WaitFigures(waits=2, long_waits=1, idle_seconds=0.0)
    clock.now += WINDOW_SECONDS + 1
    assert own.figures() == WaitFigures(0, 0, 0.0)


def test_a_request_that_still_waits_counts_once_it_has_waited_for_long() -> None:
    own, clock = waits()
    own.arrive("a")
    clock.now += 1.9
    assert own.figures() == WaitFigures(0, 0, 0.0)
    clock.now += 0.2
    assert own.figures() == WaitFigures(1, 1, 0.0)
    own.leave("a")
    assert own.figures() == WaitFigures(0, 0, 0.0)


def test_a_replica_is_idle_from_the_end_of_its_last_request() -> None:
    own, clock = waits()
    clock.now += 5
    assert own.figures().idle_seconds == 5
    own.arrive("a")
    own.begin("a")
    clock.now += 50
    assert own.figures().idle_seconds == 0
    own.leave("a")
    clock.now += 7
    assert own.figures().idle_seconds == 7


def figures(waits: int, long_waits: int, idle: float = 0.0) -> WaitFigures:
    return WaitFigures(waits, long_waits, idle)


SCALING = Scaling(least=1, most=4)


def test_a_replica_is_added_when_more_than_a_tenth_of_all_requests_wait_for_long() -> None:
    assert SCALING.wanted(2, [figures(50, 4), figures(50, 6)]) == 2
    assert SCALING.wanted(2, [figures(50, 4), figures(50, 7)]) == 3
    assert SCALING.wanted(1, [figures(3, 3)]) == 1  # too few to say
    assert SCALING.wanted(4, [figures(9, 9)] * 4) == 4


def test_nothing_changes_while_a_replica_is_loading() -> None:
    assert SCALING.wanted(3, [figures(9, 9)] * 2) == 3
    assert SCALING.wanted(3, [figures(0, 0, 9e9)] * 2) == 3


def test_an_idle_replica_is_taken_away_down_to_the_least() -> None:
    assert SCALING.wanted(2, [figures(9, 0), figures(0, 0, 599)]) == 2
    assert SCALING.wanted(2, [figures(9, 0), figures(0, 0, 600)]) == 1
    assert SCALING.wanted(1, [figures(0, 0, 600)]) == 1
    assert Scaling(1, 4, idle_seconds=5).wanted(3, [figures(0, 0, 6)] * 3) == 2


def test_waiting_requests_go_before_idle_replicas() -> None:
    assert SCALING.wanted(2, [figures(20, 20), figures(0, 0, 600)]) == 3
