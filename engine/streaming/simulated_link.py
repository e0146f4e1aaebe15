"""A link of pretended bandwidth between RAM and slots, where there is no device of its own."""

import time
from collections.abc import Callable

from engine.streaming.meter import Meter


class SimulatedLink:
    """RAM behind a link of `gbps` gigabytes (1e9) a second. Carries one transfer at a time.

    A transfer takes its bytes over the bandwidth from when it was asked for or the link became
    free. The next one starts from that computed end, not from when the sleep returned, so the
    bandwidth is met on average; it is never exceeded.
    """

    def __init__(
        self, gbps: float, meter: Meter, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        assert gbps > 0, f"a link of {gbps} GB/s carries nothing"
        self._seconds_per_byte = 1 / (gbps * 1e9)
        self._meter = meter
        self._sleep = sleep
        self._free_at = 0.0

    def carry(self, nbytes: int, asked: float, copy: Callable[[], None]) -> None:
        """Run `copy`, which moves `nbytes`, and return when the link would be through.

        `asked` is the time of the meter's clock at which the transfer could have begun.
        """
        clock = self._meter.clock
        start = max(asked, self._free_at)
        self._meter.begin(start)
        copy()
        self._free_at = max(start + nbytes * self._seconds_per_byte, clock())
        while (left := self._free_at - clock()) > 0:
            self._sleep(left)
        self._meter.end(self._free_at, nbytes)
