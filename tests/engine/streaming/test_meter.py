"""Tests of a link's traffic and simulated bandwidth, on a clock that only sleeping moves."""

import pytest

from engine.streaming.cpu_link import SimulatedLink
from engine.streaming.meter import LinkStats, Meter, Traffic


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float, late: float = 0.0) -> None:
        self.now += seconds + late


def fail_after(clock: Clock, seconds: float) -> None:
    clock.sleep(seconds)
    raise OSError("torn")


def test_overlapping_transfers_are_timed_once() -> None:
    meter = Meter()
    meter.begin(0.0)
    meter.begin(2.0)
    meter.end(5.0, 30)
    meter.end(10.0, 70)
    meter.begin(20.0)
    meter.end(21.0, 10)
    assert meter.traffic() == Traffic(110, 11.0)


def test_a_failed_transfer_counts_its_time_but_no_bytes() -> None:
    clock = Clock()
    meter = Meter(clock)
    with pytest.raises(OSError, match="torn"), meter.time_transfer(10):
        fail_after(clock, 3.0)
    assert meter.traffic() == Traffic(0, 3.0)
    assert meter.seconds_per_byte == 0.0


def test_the_expected_seconds_per_byte_follow_the_link() -> None:
    meter = Meter()
    meter.add_transfer(1.0, 10)
    assert meter.seconds_per_byte == pytest.approx(0.1)
    for _ in range(40):
        meter.add_transfer(2.0, 10)
    assert meter.seconds_per_byte == pytest.approx(0.2, rel=1e-3)


def test_reset_counts_from_zero_but_keeps_the_expected_speed() -> None:
    meter = Meter()
    meter.add_transfer(1.0, 10)
    meter.begin(5.0)
    meter.reset()
    assert meter.traffic() == Traffic(0, 0.0)
    meter.end(7.0, 20)
    assert meter.traffic() == Traffic(20, 2.0)
    assert meter.seconds_per_byte == pytest.approx(0.1)


def test_bandwidths_and_sums_over_both_links() -> None:
    stats = LinkStats(Traffic(4_000_000_000, 2.0), Traffic(10, 5.0), 0.0, 7)
    assert stats.ram.gbps == 2.0
    assert Traffic(0, 0.0).gbps == 0.0
    assert (stats.bytes, stats.busy_seconds) == (4_000_000_010, 7.0)


def test_queued_transfers_meet_the_bandwidth_although_sleeps_are_late() -> None:
    clock = Clock()
    meter = Meter(clock)
    link = SimulatedLink(1e-6, meter, lambda seconds: clock.sleep(seconds, late=0.05))  # 1000 B/s
    arrived: list[tuple[float, int]] = []
    for number in range(10):  # all requested at the same time
        link.carry(500, 100.0, lambda: None)
        arrived.append((clock.now, 500 * (number + 1)))
    assert meter.traffic().bytes == 5000
    assert meter.traffic().seconds == pytest.approx(5.0)
    for now, nbytes in arrived:
        assert nbytes <= 1000 * (now - 100.0) + 1e-6
    assert clock.now == pytest.approx(105.05)  # lateness does not add up


def test_an_idle_link_does_not_save_up_bandwidth() -> None:
    clock = Clock()
    link = SimulatedLink(1e-6, Meter(clock), clock.sleep)
    link.carry(500, clock.now, lambda: None)
    clock.sleep(60.0)
    began = clock.now
    link.carry(500, began, lambda: None)
    assert clock.now - began == pytest.approx(0.5)


def test_a_copy_slower_than_the_link_counts_its_own_time() -> None:
    clock = Clock()
    meter = Meter(clock)
    link = SimulatedLink(1e-6, meter, lambda seconds: pytest.fail("there is nothing to sleep for"))
    link.carry(500, clock.now, lambda: clock.sleep(2.0))
    assert meter.traffic() == Traffic(500, 2.0)
