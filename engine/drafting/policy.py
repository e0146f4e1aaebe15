"""How much to draft: a draft step or a row pays while it raises the tokens per second.

A cycle is drafting and the pass after it; it emits E tokens in T seconds. Some cycles are over text
that is easy to predict, others are not. The tokens of all cycles over their seconds are highest
where each cycle maximizes E - r T, where r is the rate of recent cycles in tokens a second
(Dinkelbach 1967, "On nonlinear fractional programming"; renewal reward). A further step or row of
dE expected tokens and dT seconds is worth it where dE > r dT. Until r is known, a cycle maximizes
its own E / T.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from engine.drafting.calibration import Calibration
from engine.drafting.growth import Growth, Node
from engine.timing import PassTimes, StepTimes

DECAY = 0.9  # factor on the weight of earlier cycles with each later one
MIN_CYCLES = 4  # cycles after which their rate is used
EXPLORE_EVERY = 32  # cycles without a draft step until one is run to learn whether it pays by now

Step = list[tuple[Growth, list[Node]]]


@dataclass
class _Rate:
    """The tokens and the seconds of recent cycles, both as sums in which old cycles fade."""

    tokens: float = 0.0
    seconds: float = 0.0
    cycles: int = 0


class TreePolicy:
    """Decides how many nodes the draft model runs and how many rows a pass verifies.

    It decides for all sequences of a cycle together, by measured times and expected tokens.
    """

    def __init__(self, calibration: Calibration, passes: PassTimes, *, is_tuned: bool) -> None:
        self.calibration = calibration
        self.passes = passes
        self.draft = StepTimes()
        self.is_tuned = is_tuned
        self._rates: defaultdict[int, _Rate] = defaultdict(_Rate)  # by a cycle's sequences
        self._cycles_undrafted = 0

    def observe_cycle(self, num_trees: int, tokens: int, seconds: float) -> None:
        """Record a finished cycle without prompt rows, to learn the rate of recent cycles.

        Args:
            num_trees: the number of sequences, which all were decoding.
            tokens: the tokens emitted by all of them.
            seconds: the time of drafting and the pass.
        """
        rate = self._rates[num_trees]
        rate.tokens = DECAY * rate.tokens + tokens
        rate.seconds = DECAY * rate.seconds + seconds
        rate.cycles += 1

    def choose_step(
        self,
        growths: Sequence[Growth],
        width: int,
        depth: int,
        elapsed: float,
        fixed_rows: int,
        undrafted: int = 0,
    ) -> Step:
        """Return the nodes that the next draft step should run; none where a step would not pay.

        Args:
            width: the most nodes of one growth.
            depth: the level from which on no node is run.
            elapsed: the seconds spent on drafting in this cycle so far.
            fixed_rows: the prompt rows of the pass.
            undrafted: sequences of the pass for which the draft model runs no step.
        """
        candidates: Step = []
        for growth in growths:
            if not self.is_tuned and growth.num_levels >= depth:
                continue  # its steps were run ahead, during the last pass
            nodes = growth.pop(width, depth, growth.floor)
            if nodes:
                candidates.append((growth, nodes))
        num_trees = len(growths) + undrafted
        expected = sum(growth.expected for growth in growths) + undrafted
        rows = sum(min(len(growth), growth.budget) for growth in growths)
        rows += fixed_rows + undrafted
        context = sum(g.root.position for g in growths) / max(len(growths), 1)
        is_timed = self.passes.expect(rows) is not None and self.draft.expect(1) is not None
        if not self.is_tuned or not candidates or not is_timed:
            return candidates
        masses = [0.0, *accumulate(_probabilities(candidates))]

        def value_of(count: int) -> float:
            step = self.draft.expect(count) if count else 0.0
            assert step is not None, "one step was timed"
            return self._cycle_value(
                expected=expected + self.calibration.mass * masses[count],
                rows=rows,
                elapsed=elapsed + step,
                context=context,
                num_trees=num_trees,
            )

        best = max(range(len(masses)), key=value_of)
        if best:
            self._cycles_undrafted = 0
        elif elapsed == 0:
            self._cycles_undrafted += 1
            if self._cycles_undrafted % EXPLORE_EVERY == 0:
                return candidates
        return _select_best(candidates, best)

    def _cycle_value(
        self, expected: float, rows: int, elapsed: float, context: float, num_trees: int
    ) -> float:
        """Return what a cycle is worth. The value ranks alternatives of one cycle only.

        The cycle drafts for `elapsed` seconds, then a pass of `rows` rows emits `expected` tokens.
        """
        seconds = self.passes.expect_cycle(rows, elapsed, context)
        assert seconds is not None, "a pass was timed"
        rate = self._rates[num_trees]
        if rate.cycles < MIN_CYCLES:
            return expected / seconds
        return expected - rate.tokens / rate.seconds * seconds

    def choose_step_ahead(self, candidates: Step, seconds: float) -> Step:
        """Return the most probable candidates that one step is expected to run within `seconds`.

        Their number is halved until the step fits; the others are put back. None are returned
        where nothing fits or no step was timed yet.
        """
        count = sum(len(nodes) for _, nodes in candidates)
        while count and (self.draft.expect(count) or seconds) >= seconds:
            count //= 2
        return _select_best(candidates, count)

    def allot_rows(
        self,
        ranked: Sequence[Sequence[float]],
        elapsed: float,
        fixed_rows: int,
        max_rows: int,
        context: float = 0.0,
    ) -> list[int]:
        """Return how many rows of each tree the pass should verify, its root included.

        All trees compete for the rows, which go where most tokens are expected.

        Args:
            ranked: for each tree the falling probabilities of its rows; the root's, 1, is first.
            elapsed: the seconds spent on drafting in this cycle.
            fixed_rows: the prompt rows of the pass.
            max_rows: the most rows of the pass.
            context: the tokens that a row attends to, on average.
        """
        fixed = fixed_rows + len(ranked)
        below = sorted((-probability, i) for i, own in enumerate(ranked) for probability in own[1:])
        below = below[: max(max_rows - fixed, 0)]
        count = len(below)
        if self.is_tuned and self.passes.expect(fixed) is not None:
            masses = [0.0, *accumulate(-cost for cost, _ in below)]
            free = self.passes.padded(fixed) - fixed  # rows that fill up a tile take no more time

            def value_of(count: int) -> float:
                return self._cycle_value(
                    expected=len(ranked) + masses[count],
                    rows=fixed + count,
                    elapsed=elapsed,
                    context=context,
                    num_trees=len(ranked),
                )

            full_tiles = range(free, len(below), self.passes.granularity)
            count = max([*full_tiles, len(below)], key=value_of)
        counts = Counter(i for _, i in below[:count])
        return [1 + counts[i] for i in range(len(ranked))]


def _probabilities(candidates: Step) -> list[float]:
    """Return the probabilities of all candidates, the largest first."""
    return sorted((g.probability(n) for g, nodes in candidates for n in nodes), reverse=True)


def _select_best(candidates: Step, count: int) -> Step:
    """Return the `count` most probable candidates, and put the others back."""
    probabilities = _probabilities(candidates)
    if count == len(probabilities):
        return candidates
    least = probabilities[count - 1] if count else 2.0
    chosen: Step = []
    for growth, nodes in candidates:
        own = [node for node in nodes if growth.probability(node) >= least]
        growth.put_back(nodes[len(own) :])
        if own:
            chosen.append((growth, own))
    return chosen
