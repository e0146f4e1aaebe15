"""How much to draft: a step or a row pays while it raises tokens over time.

A cycle drafts, then walks a pass; it emits E tokens in T seconds. Cycles follow each other, some
over text that is easy to foresee: all tokens over all seconds are most where each cycle makes the
most of E - r T, r being the tokens a second of the cycles of late (Dinkelbach 1967, "On nonlinear
fractional programming"; renewal reward). One more thing to do, of dE expected tokens and dT
seconds, is worth it where dE > r dT. Until r is known a cycle makes the most of its own E / T.
"""

import heapq
from collections import defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate
from math import inf

from engine.drafting.calibration import Calibration
from engine.drafting.growth import Growth, Node
from engine.timing import PassTimes, StepTimes

FADING = 0.9  # of what earlier cycles count, with each later one
LEARNED = 4  # cycles after which their rate is believed
EXPLORE = 32  # cycles without a draft, before one is drafted to see whether it pays by now

Step = list[tuple[Growth, list[Node]]]


@dataclass
class _Rate:
    """Tokens a second of the cycles of late: of both, sums in which old cycles fade."""

    tokens: float = 0.0
    seconds: float = 0.0
    cycles: int = 0

    def observe(self, tokens: int, seconds: float) -> None:
        self.tokens = FADING * self.tokens + tokens
        self.seconds = FADING * self.seconds + seconds
        self.cycles += 1


class TreePolicy:
    """Decides for all sequences of a cycle together; knows times, not tokens."""

    def __init__(self, calibration: Calibration, passes: PassTimes, *, tuned: bool) -> None:
        self.calibration = calibration
        self.passes = passes
        self.draft = StepTimes()
        self.tuned = tuned
        self._rates: defaultdict[int, _Rate] = defaultdict(_Rate)  # by the sequences of a cycle
        self._cycles_undrafted = 0

    def observe(self, num_trees: int, tokens: int, seconds: float) -> None:
        """A cycle of so many sequences, none in its prompt, emitted so many tokens."""
        self._rates[num_trees].observe(tokens, seconds)

    def choose_step(
        self,
        growths: Seq[Growth],
        width: int,
        depth: int,
        elapsed: float,
        fixed_rows: int,
        undrafted: int = 0,
    ) -> Step:
        """The nodes that the next draft step runs; none where it would not pay.

        `elapsed` are the seconds drafted in this cycle, `fixed_rows` the rows of prompts,
        `undrafted` the sequences beside these for which no step is run.
        """
        offered: Step = []
        for growth in growths:
            if not self.tuned and growth.num_levels >= depth:
                continue  # its steps were made ahead
            nodes = growth.pop(width, depth, growth.floor)
            if nodes:
                offered.append((growth, nodes))
        count = self._worth(growths, offered, elapsed, fixed_rows, undrafted)
        return _best(offered, count)

    def _worth(
        self,
        growths: Seq[Growth],
        offered: Step,
        elapsed: float,
        fixed_rows: int,
        undrafted: int,
    ) -> int:
        """How many of the offered nodes to run, the best first."""
        total = sum(len(nodes) for _, nodes in offered)
        num_trees = len(growths) + undrafted
        expected = sum(growth.expected for growth in growths) + undrafted
        rows = sum(min(len(growth), growth.budget) for growth in growths)
        rows += fixed_rows + undrafted
        context = sum(g.root.position for g in growths) / max(len(growths), 1)
        seconds = self.passes.expect_cycle(rows, elapsed, context)
        if not self.tuned or not total or seconds is None or self.draft.expect(1) is None:
            return total
        chances = sorted((g.probability(n) for g, nodes in offered for n in nodes), reverse=True)
        best, best_merit = 0, self._merit(expected, seconds, num_trees)
        for count, mass in enumerate(accumulate(chances), 1):
            step = self.draft.expect(count)
            assert step is not None, "one step was timed"
            seconds = self.passes.expect_cycle(rows, elapsed + step, context)
            assert seconds is not None, "a pass was timed"
            merit = self._merit(expected + self.calibration.mass * mass, seconds, num_trees)
            if merit > best_merit:
                best, best_merit = count, merit
        if best:
            self._cycles_undrafted = 0
        elif elapsed == 0:
            self._cycles_undrafted += 1
            if self._cycles_undrafted % EXPLORE == 0:
                return total
        return best

    def _merit(self, expected: float, seconds: float, num_trees: int) -> float:
        """What a cycle of so many expected tokens and seconds is worth, beside its other forms."""
        rate = self._rates[num_trees]
        if rate.cycles < LEARNED:
            return expected / seconds
        return expected - rate.tokens / rate.seconds * seconds

    def choose_ahead(self, offered: Step, seconds: float) -> Step:
        """The offered nodes that one step runs in so many seconds; none where it may not fit."""
        count = sum(len(nodes) for _, nodes in offered)
        while count and (self.draft.expect(count) or seconds) >= seconds:
            count //= 2
        return _best(offered, count)

    def allot(
        self,
        ranked: Seq[Seq[float]],
        elapsed: float,
        fixed_rows: int,
        max_rows: int,
        context: float = 0.0,
    ) -> list[int]:
        """How many rows of each tree ride the pass, its root among them.

        `ranked[i]` are the probabilities of tree i's rows, falling, the root's 1 first. All trees
        compete for the rows: those go where most tokens are expected. `context` is how many tokens
        one sees, on average.
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
        for i in order[self._rows_worth(masses, len(ranked), elapsed, fixed_rows, context) :]:
            counts[i] -= 1
        return counts

    def _rows_worth(
        self,
        masses: Seq[float],
        num_trees: int,
        elapsed: float,
        fixed_rows: int,
        context: float,
    ) -> int:
        """How many rows below the roots pay; rows that fill up a tile are free."""
        fixed = fixed_rows + num_trees
        if not self.tuned or self.passes.expect(fixed) is None:
            return len(masses)
        totals = [0.0, *accumulate(masses)]
        best, best_merit = 0, -inf
        free = self.passes.padded(fixed) - fixed
        while True:
            count = min(free, len(masses))
            seconds = self.passes.expect_cycle(fixed + count, elapsed, context)
            assert seconds is not None, "a pass was timed"
            merit = self._merit(num_trees + totals[count], seconds, num_trees)
            if merit > best_merit:
                best, best_merit = count, merit
            if count == len(masses):
                return best
            free += self.passes.granularity


def _best(offered: Step, count: int) -> Step:
    """The `count` most probable of the offered nodes; the others go back."""
    chances = sorted((g.probability(n) for g, nodes in offered for n in nodes), reverse=True)
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
