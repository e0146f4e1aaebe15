"""The rules of supervision: stalls and restarts."""

import pytest

from engine.process.watchdog import Backoff, Watchdog


def test_thirty_seconds_of_silence_are_a_stall_if_passes_are_short() -> None:
    watchdog = Watchdog(now=0.0)
    watchdog.record_pass(0.2)
    watchdog.restart_timer(100.0)
    assert watchdog.remaining_s(129.9) > 0
    assert watchdog.remaining_s(130.0) <= 0


def test_silence_of_ten_typical_passes_is_allowed_if_passes_are_long() -> None:
    watchdog = Watchdog(now=0.0)
    for seconds in (7.0, 8.0, 500.0):  # one outlier is not typical
        watchdog.record_pass(seconds)
    assert watchdog.remaining_s(79.0) > 0
    assert watchdog.remaining_s(80.0) <= 0


def test_the_first_pass_may_take_longer() -> None:
    assert Watchdog(now=0.0).remaining_s(299.0) > 0
    assert Watchdog(now=0.0).remaining_s(300.0) <= 0


def test_a_load_may_be_silent_for_some_minutes_however_short_passes_are() -> None:
    watchdog = Watchdog(now=0.0, is_loading=True)
    watchdog.record_pass(0.2)
    assert watchdog.remaining_s(299.0) > 0
    assert watchdog.remaining_s(300.0) <= 0
    watchdog.end_load()
    assert watchdog.remaining_s(30.0) <= 0


def test_a_check_that_is_far_too_late_starts_the_timer_anew() -> None:
    watchdog = Watchdog(now=0.0)
    watchdog.record_pass(0.2)
    watchdog.restart_timer_if_late(31.0, due=30.0)
    assert watchdog.remaining_s(31.0) <= 0
    watchdog.restart_timer_if_late(100.0, due=30.0)
    assert watchdog.remaining_s(129.0) > 0 and watchdog.remaining_s(130.0) <= 0


def test_any_message_starts_the_timer_anew() -> None:
    watchdog = Watchdog(now=0.0)
    watchdog.record_pass(1.0)
    watchdog.restart_timer(29.0)
    assert watchdog.remaining_s(30.0) == 29.0


def test_old_passes_are_forgotten() -> None:
    watchdog = Watchdog(now=0.0)
    for _ in range(50):
        watchdog.record_pass(60.0)
    for _ in range(50):
        watchdog.record_pass(1.0)
    assert watchdog.max_silence_s == 30.0


def test_backoff_doubles_up_to_thirty_seconds() -> None:
    backoff = Backoff()
    delays = [backoff.next_delay(now, served_s=1.0, has_served=False) for now in range(8)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_backoff_starts_anew_after_a_minute_of_service() -> None:
    backoff = Backoff()
    for now in range(5):
        backoff.next_delay(now, served_s=0.0, has_served=False)
    assert backoff.next_delay(64.0, served_s=59.0, has_served=False) == 16.0
    assert backoff.next_delay(125.0, served_s=60.0, has_served=False) == 0.5
    assert backoff.next_delay(126.0, served_s=0.0, has_served=False) == 1.0


@pytest.mark.parametrize(
    ("deaths", "delays"),
    [
        # (when, whether a pass had been completed)
        ([(0, True), (10, True)], [0.5, 1]),
        ([(0, True), (10, True), (59, True), (59.9, True)], [0.5, 1, 2, 4]),
        ([(0, True), (10, True), (60, True), (69.9, True)], [0.5, 1, 1, 2]),
        ([(70 * i, True) for i in range(6)], [0.5, 1, 1, 1, 1, 1]),
        ([(0, False), (1, False), (2, False), (70, True), (71, False)], [0.5, 1, 2, 1, 2]),
    ],
)
def test_a_process_that_served_is_restarted_within_a_second(
    deaths: list[tuple[float, bool]], delays: list[float]
) -> None:
    backoff = Backoff()
    assert [backoff.next_delay(now, served_s=5.0, has_served=has) for now, has in deaths] == delays
