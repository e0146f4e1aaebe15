"""How much to draft: a step or a row pays while it raises tokens over time.

A cycle drafts, then walks a pass; it emits E tokens in T seconds. One more thing to do, of dE
expected tokens and dT seconds, is worth it while (E + dE) / (T + dT) rises: cycles follow each
other, so the best ratio of one is the best speed of all.
"""

import heapq
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from itertools import accumulate

from engine.calibration import Calibration
from engine.growth import Growth, Node
from engine.timing import StepTimes

EXPLORE = 32  # cycles without a draft, before one is drafted to see whether it pays by now

Step = list[tuple[Growth, list[Node]]]


@dataclass
class PassTimes:
    """What a pass of the target takes: its weights' travel or its rows' compute."""

    granularity: int  # rows are computed in so many at a time
    ahead: float = 0.0  # share of the weights that the ring takes in before the pass begins
    link_seconds: float = 0.0  # smoothed time in which weights travel
    compute: StepTimes = field(default_factory=StepTimes)

    def observe(self, rows: int, compute_seconds: float, link_seconds: float) -> None:
        """Rows of a pass, and what it took without waiting for weights."""
        self.compute.observe(self.padded(rows), compute_seconds)
        known = self.link_seconds or link_seconds
        self.link_seconds = known + 0.2 * (link_seconds - known)

    def expect(self, rows: int) -> float | None:
        """Seconds of a pass of so many rows; None before the first."""
        compute = self.compute.expect(self.padded(rows))
        return None if compute is None else max(compute, self.link_seconds)

    def expect_cycle(self, rows: int, elapsed: float) -> float | None:
        """Seconds of drafting, `elapsed`, and the pass behind it; None before the first.

        While the draft computes, the link fills the ring with the pass's first units: until that
        is full, drafting costs a pass that waits for its weights nothing.
        """
        compute = self.compute.expect(self.padded(rows))
        if compute is None:
            return None
        stands = max(elapsed - self.ahead * self.link_seconds, 0.0)
        return max(elapsed + compute, self.link_seconds + stands)

    def padded(self, rows: int) -> int:
        return -(-rows // self.granularity) * self.granularity


class TreePolicy:
    """Decides for all sequences of a cycle together; knows times, not tokens."""

    def __init__(self, calibration: Calibration, passes: PassTimes, *, tuned: bool) -> None:
        self.calibration = calibration
        self.passes = passes
        self.draft = StepTimes()
        self.tuned = tuned
        self._cycles_undrafted = 0

    def choose_step(
        self, growths: Seq[Growth], width: int, depth: int, elapsed: float, fixed_rows: int
    ) -> Step:
        """The nodes that the next draft step runs; none where it would not pay.

        `elapsed` are the seconds drafted in this cycle, `fixed_rows` the rows of prompts.
        """
        offered: Step = []
        for growth in growths:
            if not self.tuned and growth.num_levels >= depth:
                continue  # its steps were made ahead
            nodes = growth.pop(width, depth, growth.floor)
            if nodes:
                offered.append((growth, nodes))
        count = self._worth(growths, offered, elapsed, fixed_rows)
        return _best(offered, count)

    def _worth(self, growths: Seq[Growth], offered: Step, elapsed: float, fixed_rows: int) -> int:
        """How many of the offered nodes to run, the best first."""
        total = sum(len(nodes) for _, nodes in offered)
        expected = sum(growth.expected for growth in growths)
        rows = sum(min(len(growth), growth.budget) for growth in growths)
        rows += fixed_rows
        seconds = self.passes.expect_cycle(rows, elapsed)
        if not self.tuned or not total or seconds is None or self.draft.expect(1) is None:
            return total
        chances = sorted(
            (growth.probability(node) for growth, nodes in offered for node in nodes), reverse=True
        )
        best, best_rate = 0, expected / seconds
        for count, mass in enumerate(accumulate(chances), 1):
            step = self.draft.expect(count)
            assert step is not None, "one step was timed"
            seconds = self.passes.expect_cycle(rows, elapsed + step)
            assert seconds is not None, "a pass was timed"
            rate = (expected + self.calibration.mass * mass) / seconds
            if rate > best_rate:
                best, best_rate = count, rate
        if best:
            self._cycles_undrafted = 0
        elif elapsed == 0:
            self._cycles_undrafted += 1
            if self._cycles_undrafted % EXPLORE == 0:
                return total
        return best

    def choose_ahead(self, offered: Step, seconds: float) -> Step:
        """The offered nodes that one step runs in so many seconds; none where it may not fit."""
        count = sum(len(nodes) for _, nodes in offered)
        while count and (self.draft.expect(count) or seconds) >= seconds:
            count //= 2
        return _best(offered, count)

    def allot(
        self, ranked: Seq[Seq[float]], elapsed: float, fixed_rows: int, max_rows: int
    ) -> list[int]:
        """How many rows of each tree ride the pass, its root among them.

        `ranked[i]` are the probabilities of tree i's rows, falling, the root's 1 first. All trees
        compete for the rows: those go where most tokens are expected.
        """
        counts = [1] * len(ranked)
        heap = [(-chances[1], i) for i, chances in enumerate(ranked) if len(chances) > 1]
        heapq.heapify(heap)
        order: list[int] = []  # the tree of each row below the roots, best first
        masses: list[float] = []
        room = max_rows - fixed_rows - len(ranked)
        while heap and len(order) < room:
            cost, i = heapq.heappop(heap)
            order.append(i)
            masses.append(-cost)
            counts[i] += 1
            if counts[i] < len(ranked[i]):
                heapq.heappush(heap, (-ranked[i][counts[i]], i))
        for i in order[self._rows_worth(masses, len(ranked), elapsed, fixed_rows) :]:
            counts[i] -= 1
        return counts

    def _rows_worth(
        self, masses: Seq[float], num_trees: int, elapsed: float, fixed_rows: int
    ) -> int:
        """How many rows below the roots pay; rows that fill up a tile are free."""
        fixed = fixed_rows + num_trees
        if not self.tuned or self.passes.expect(fixed) is None:
            return len(masses)
        totals = [0.0, *accumulate(masses)]
        best, best_rate = 0, 0.0
        free = self.passes.padded(fixed) - fixed
        while True:
            count = min(free, len(masses))
            seconds = self.passes.expect_cycle(fixed + count, elapsed)
            assert seconds is not None, "a pass was timed"
            rate = (num_trees + totals[count]) / seconds
            if rate > best_rate:
                best, best_rate = count, rate
            if count == len(masses):
                return best
            free += self.passes.granularity


def _best(offered: Step, count: int) -> Step:
    """The `count` most probable of the offered nodes; the others go back."""
    chances = sorted(
        (growth.probability(node) for growth, nodes in offered for node in nodes), reverse=True
    )
    if count == len(chances):
        return offered
    least = chances[count - 1] if count else 2.0
    chosen: Step = []
    for growth, nodes in offered:
        own = [node for node in nodes if growth.probability(node) >= least]
        growth.put_back(nodes[len(own) :])
        if own:
            chosen.append((growth, own))
    return chosen
