"""Tests of the times of computing and waiting, with moments of a device that runs late."""

import itertools

import pytest

from engine.streaming.idle import HostMoment, IdleTimes, Moment


class Late:
    """A device that reaches the moments of its work at times that a test sets."""

    def __init__(self, *times: float) -> None:
        self.times = times
        self.reached = 0  # moments
        self._numbers = itertools.count()

    def moment(self) -> "LateMoment":
        return LateMoment(self, next(self._numbers))


class LateMoment:
    def __init__(self, device: Late, number: int) -> None:
        self.device = device
        self.number = number

    def seconds_until(self, later: Moment) -> float | None:
        assert isinstance(later, LateMoment)
        if later.number >= self.device.reached:
            return None
        return self.device.times[later.number] - self.device.times[self.number]


def test_times_are_those_of_the_device_and_known_when_it_has_got_there() -> None:
    device = Late(0.0, 1.0, 4.0, 4.5, 10.0, 10.25)
    idle = IdleTimes(device.moment)
    idle.add_stall(idle.request(in_pass=False), idle.get(), 0.25)  # at 0 and at 1
    idle.add_stall(idle.request(in_pass=True), idle.get(), 0.0)  # at 4 and at 4.5
    assert (idle.stall_seconds, idle.compute_seconds) == (0.0, None)
    device.reached = 3
    assert (idle.stall_seconds, idle.compute_seconds) == (0.75, 3.0)
    device.reached = 4
    assert idle.stall_seconds == 1.25
    idle.reset_stall()
    idle.add_stall(idle.request(in_pass=True), idle.get(), 1.0)  # other work took longer
    device.reached = 6
    assert idle.stall_seconds == 0.0
    assert 3.0 < (idle.compute_seconds or 0.0) < 5.5, "an average"


@pytest.mark.parametrize("ends", ["first of a pass", "after a seek"])
def test_what_lies_between_passes_is_no_computing(ends: str) -> None:
    device = Late(0.0, 1.0, 2.0)
    device.reached = 3
    idle = IdleTimes(device.moment)
    idle.request(in_pass=False)
    idle.get()
    if ends == "after a seek":
        idle.end_pass()
    idle.request(in_pass=ends == "after a seek")
    assert idle.compute_seconds is None


def test_what_is_not_known_yet_is_forgotten_by_a_reset() -> None:
    device = Late(0.0, 1.0, 2.0, 3.0)
    idle = IdleTimes(device.moment)
    idle.add_stall(idle.request(in_pass=False), idle.get(), 0.0)
    idle.reset_stall()
    idle.add_stall(idle.request(in_pass=True), idle.get(), 0.0)
    idle.forget_compute()
    device.reached = 4
    assert (idle.stall_seconds, idle.compute_seconds) == (0.0, None)


def test_a_host_knows_its_moments_at_once() -> None:
    first = HostMoment()
    assert first.seconds_until(HostMoment()) >= 0
