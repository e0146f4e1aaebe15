"""When a silent process is given up, how long until the next try, and who is refused."""

import pytest

from engine.process.watchdog import Backoff, Suspects, Watchdog


def test_thirty_seconds_of_silence_are_a_stall_when_passes_are_short() -> None:
    watchdog = Watchdog(now=0.0)
    watchdog.passed(0.2)
    watchdog.heard(100.0)
    assert watchdog.remaining(129.9) > 0
    assert watchdog.remaining(130.0) <= 0


def test_ten_typical_passes_are_allowed_when_passes_are_long() -> None:
    watchdog = Watchdog(now=0.0)
    for seconds in (7.0, 8.0, 500.0):  # one outlier is not typical
        watchdog.passed(seconds)
    assert watchdog.remaining(79.0) > 0
    assert watchdog.remaining(80.0) <= 0


def test_the_first_pass_may_take_longer() -> None:
    assert Watchdog(now=0.0).remaining(299.0) > 0
    assert Watchdog(now=0.0).remaining(300.0) <= 0


def test_who_looks_far_too_late_was_paused_and_the_process_with_it() -> None:
    watchdog = Watchdog(now=0.0)
    watchdog.passed(0.2)
    watchdog.looked(31.0, due=30.0)
    assert watchdog.remaining(31.0) <= 0
    watchdog.looked(100.0, due=30.0)
    assert watchdog.remaining(129.0) > 0 and watchdog.remaining(130.0) <= 0


def test_any_sign_of_life_starts_the_silence_anew() -> None:
    watchdog = Watchdog(now=0.0)
    watchdog.passed(1.0)
    watchdog.heard(29.0)
    assert watchdog.remaining(30.0) == 29.0


def test_old_passes_are_forgotten() -> None:
    watchdog = Watchdog(now=0.0)
    for _ in range(50):
        watchdog.passed(60.0)
    for _ in range(50):
        watchdog.passed(1.0)
    assert watchdog.quiet_s == 30.0


def test_backoff_doubles_up_to_thirty_seconds() -> None:
    backoff = Backoff()
    delays = [backoff.delay(now, served_s=1.0, has_served=False) for now in range(8)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_backoff_starts_anew_after_a_minute_of_service() -> None:
    backoff = Backoff()
    for now in range(5):
        backoff.delay(now, served_s=0.0, has_served=False)
    assert backoff.delay(64.0, served_s=59.0, has_served=False) == 16.0
    assert backoff.delay(125.0, served_s=60.0, has_served=False) == 0.5
    assert backoff.delay(126.0, served_s=0.0, has_served=False) == 1.0


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
def test_a_process_that_served_is_started_again_within_a_second(
    deaths: list[tuple[float, bool]], delays: list[float]
) -> None:
    backoff = Backoff()
    assert [backoff.delay(now, served_s=5.0, has_served=has) for now, has in deaths] == delays


def test_a_request_that_saw_two_deaths_is_refused() -> None:
    suspects = Suspects()
    suspects.saw_death("poison", now=0.0)
    assert not suspects.refuses("poison", now=1.0)
    suspects.saw_death("poison", now=2.0)
    assert suspects.refuses("poison", now=3.0)
    assert not suspects.refuses("another", now=3.0)


def test_an_answered_request_is_innocent() -> None:
    suspects = Suspects()
    suspects.saw_death("bystander", now=0.0)
    suspects.served("bystander")
    suspects.saw_death("bystander", now=1.0)
    assert not suspects.refuses("bystander", now=2.0)


def test_a_refused_request_gets_another_try_after_ten_minutes() -> None:
    suspects = Suspects()
    for now in (0.0, 10.0):
        suspects.saw_death("poison", now)
    assert suspects.refuses("poison", now=609.0)
    assert not suspects.refuses("poison", now=610.0)
    suspects.saw_death("poison", now=611.0)
    assert suspects.refuses("poison", now=612.0)


def test_suspects_are_bounded() -> None:
    suspects = Suspects()
    for now in (0.0, 1.0):
        suspects.saw_death("first", now)
    for other in range(1024):
        suspects.saw_death(other, now=2.0)
    assert not suspects.refuses("first", now=3.0)
