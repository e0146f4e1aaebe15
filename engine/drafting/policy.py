"""How much to draft: a step or a row pays while it raises tokens over time.

A cycle drafts, then walks a pass; it emits E tokens in T seconds. Cycles follow each other, some
over text that is easy to foresee: all tokens over all seconds are most where each cycle makes the
most of E - r T, r being the tokens a second of the cycles of late (Dinkelbach 1967, "On nonlinear
fractional programming"; renewal reward). One more thing to do, of dE expected tokens and dT
seconds, is worth it where dE > r dT. Until r is known a cycle makes the most of its own E / T.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import accumulate

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
        rate = self._rates[num_trees]
        rate.tokens = FADING * rate.tokens + tokens
        rate.seconds = FADING * rate.seconds + seconds
        rate.cycles += 1

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
        num_trees = len(growths) + undrafted
        expected = sum(growth.expected for growth in growths) + undrafted
        rows = sum(min(len(growth), growth.budget) for growth in growths)
        rows += fixed_rows + undrafted
        context = sum(g.root.position for g in growths) / max(len(growths), 1)
        known = self.passes.expect(rows) is not None and self.draft.expect(1) is not None
        if not self.tuned or not offered or not known:
            return offered
        masses = [0.0, *accumulate(_chances(offered))]

        def merit(count: int) -> float:
            step = self.draft.expect(count) if count else 0.0
            assert step is not None, "one step was timed"
            tokens = expected + self.calibration.mass * masses[count]
            return self._merit(tokens, rows, elapsed + step, context, num_trees)

        best = max(range(len(masses)), key=merit)
        if best:
            self._cycles_undrafted = 0
        elif elapsed == 0:
            self._cycles_undrafted += 1
            if self._cycles_undrafted % EXPLORE == 0:
                return offered
        return _best(offered, best)

    def _merit(
        self, expected: float, rows: int, elapsed: float, context: float, num_trees: int
    ) -> float:
        """Return the worth of a cycle, to compare it with other forms of the same cycle.

        It drafts for `elapsed` seconds, then a pass of `rows` emits `expected` tokens.
        """
        seconds = self.passes.expect_cycle(rows, elapsed, context)
        assert seconds is not None, "a pass was timed"
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
        fixed = fixed_rows + len(ranked)
        below = sorted((-chance, i) for i, chances in enumerate(ranked) for chance in chances[1:])
        below = below[: max(max_rows - fixed, 0)]
        count = len(below)
        if self.tuned and self.passes.expect(fixed) is not None:
            masses = [0.0, *accumulate(-cost for cost, _ in below)]
            free = self.passes.padded(fixed) - fixed  # rows that fill up a tile are free

            def merit(count: int) -> float:
                expected = len(ranked) + masses[count]
                return self._merit(expected, fixed + count, elapsed, context, len(ranked))

            full_tiles = range(free, len(below), self.passes.granularity)
            count = max([*full_tiles, len(below)], key=merit)
        counts = Counter(i for _, i in below[:count])
        return [1 + counts[i] for i in range(len(ranked))]


def _chances(offered: Step) -> list[float]:
    """Return the probabilities of the offered nodes, the largest first."""
    return sorted((g.probability(n) for g, nodes in offered for n in nodes), reverse=True)


def _best(offered: Step, count: int) -> Step:
    """The `count` most probable of the offered nodes; the others go back."""
    chances = _chances(offered)
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
