"""How long the walker may be away while a unit travels, and figures smoothed over a walk."""

from collections.abc import Sequence

_SMOOTHING = 0.2  # weight of the newest figure


class Smoothed:
    """A running mean in which old figures fade."""

    def __init__(self) -> None:
        self.value: float | None = None  # None before the first figure

    def observe(self, figure: float) -> None:
        known = figure if self.value is None else self.value
        self.value = known + _SMOOTHING * (figure - known)


def time_away(
    now: float, due: Sequence[float], later: Sequence[float], compute: float | None
) -> float:
    """Seconds for which nothing is lost if the walker does something else; 0 if it must stay.

    `due` are the times at which the unit it waits for, and those asked for behind it, arrive;
    `later` the link's seconds for each travelling unit of the pass behind the one waited for;
    `compute` the walker's own seconds for one of them (None: not known yet).

    Two things bound it. When all that was asked for has arrived, the link stands still until a
    slot is free: that takes the compute of the unit in it. And the pass ends no later only if the
    walker can make up for its absence, by computing faster than the link carries.
    """
    if compute is None:
        return max(0.0, due[0] - now)
    made_up = max(0.0, sum(later) - len(later) * compute)
    link_is_free = max(due[0], due[-1] - compute)
    return max(0.0, min(due[0] + made_up, link_is_free) - now)
