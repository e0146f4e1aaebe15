"""Writes the draft trees of all sequences: look-ups first, then a model, as far as it pays.

One growth a sequence lasts from its first draft to its end. `propose` grows it before a pass,
`ahead` while the pass waits for weights, `commit` moves its root to what the target chose.
"""

import time
from collections import Counter
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from math import inf, log

from engine.drafting.forcing import force, prune
from engine.drafting.growth import Growth, Node
from engine.drafting.lookups.bets import Lookup
from engine.drafting.model.draft_model import DraftModel
from engine.drafting.policy import Step, TreePolicy
from engine.drafting.tree import Bounds, DraftTree
from engine.messages import NO_DRAFT, PREDICTION
from engine.model.decoder import PassCancelled
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sequences.sequence import Sequence
from engine.streaming.ahead_stream import Aside

LOOKUP_ROWS = 32  # of each look-up beside a model: they cost host time
LEAST_AHEAD = log(0.002)  # a path less likely than this is not drafted ahead
LEAST_FORCED = 0.05  # and behind one less likely nobody asks what its grammar forces


@dataclass
class Figures:
    """What drafting did since the last pass's report."""

    ahead_seconds: float = 0.0
    undrafted: int = 0  # sequences that got a bare root because a draft would not pay
    drafted: Counter[str] = field(default_factory=Counter)  # source -> rows checked
    accepted: Counter[str] = field(default_factory=Counter)  # source -> rows accepted


class Drafting:
    """All drafts of one engine. What it proposes never changes what is emitted."""

    def __init__(
        self,
        model: DraftModel | None,
        lookups: Seq[Lookup],
        bounds: Bounds,
        policy: TreePolicy,
        *,
        ahead: bool,
        aside: Aside | None = None,
    ) -> None:
        """`aside` is where drafting ahead runs; None: in turn with all else."""
        self.policy = policy
        self.figures = Figures()
        self.aside = aside or Aside()
        self._model = model
        self._lookups = lookups
        self._bounds = bounds
        self._ahead = ahead and model is not None
        self._lookup_rows = bounds.budget if model is None else LOOKUP_ROWS
        self._growths: dict[Sequence, Growth] = {}

    @property
    def methods(self) -> tuple[str, ...]:
        """Return what a request may ask for by name, beside "auto" and `NO_DRAFT`."""
        names = [lookup.name for lookup in self._lookups if lookup.name != PREDICTION]
        return (*([self._model.name] if self._model else []), *names)

    def propose(
        self, sequences: Seq[Sequence], rooms: Seq[int], fixed_rows: int, max_rows: int
    ) -> list[DraftTree]:
        """A tree for each decoding sequence, of at most `rooms[i]` rows; row 0 is its last token.

        The pass has `fixed_rows` rows beside them, and at most `max_rows` in all.
        """
        self.settle()
        growths = [self._growth(sequence) for sequence in sequences]
        for growth in growths:
            self._look_up(growth)
            if self._may_force(growth):
                force(growth, growth.root)
        elapsed = self._grow(growths, fixed_rows)
        ranked = [
            self._ranked(growth, min(room, growth.budget))
            for growth, room in zip(growths, rooms, strict=True)
        ]
        chances = [[g.probability(n) for n in r] for g, r in zip(growths, ranked, strict=True)]
        context = sum(g.root.position for g in growths) / max(len(growths), 1)
        counts = self.policy.allot(chances, elapsed, fixed_rows, max_rows, context)
        self.figures.undrafted += sum(
            count == 1 and room > 1 and self._wants_draft(growth)
            for count, room, growth in zip(counts, rooms, growths, strict=True)
        )
        return [g.tree(r[:n]) for g, r, n in zip(growths, ranked, counts, strict=True)]

    def ahead(self, seconds: float) -> bool:
        """Draft below the trees of the pass under way for so long; whether there was time to.

        A step may be left at a layer border and gone on with at the next call.
        """
        model = self._model
        if not self._ahead or model is None:
            return False
        began = time.perf_counter()
        if model.under_way is None:
            model.begin(self._choose_ahead(seconds * model.num_stretches))
        return self._go_on(model, began, began + seconds)

    def settle(self) -> None:
        """The pass waits for no more weights: end the step under way, or give it up."""
        self.aside.join()
        model = self._model
        if model is None or model.under_way is None:
            return
        began = time.perf_counter()
        if 2 * model.under_way.resumable.num_run < model.num_stretches:
            model.give_up()
        else:
            self._go_on(model, began, inf)

    def _go_on(self, model: DraftModel, began: float, until: float) -> bool:
        """Run the step under way until that time. Return True if it made progress."""
        try:
            with self.aside.drafting():
                return model.go_on(until, self.policy.calibration)
        except PassCancelled:  # all of its clients left meanwhile; the pass may serve others
            model.give_up()
            return False
        finally:
            self.figures.ahead_seconds += time.perf_counter() - began

    def _choose_ahead(self, seconds: float) -> Step:
        """The likeliest nodes below the trees of the pass, as many as one step runs in time."""
        depth = 2 * self._bounds.depth + 1  # a whole tree below a bonus token below this one
        offered = []
        for growth in self._growths.values():
            if self._may_draft(growth):
                nodes = growth.pop(self._bounds.width, depth, LEAST_AHEAD)
                if nodes:
                    offered.append((growth, nodes))
        return self.policy.choose_ahead(offered, seconds)

    def take_figures(self) -> Figures:
        """Return what drafting did since the last call."""
        figures, self.figures = self.figures, Figures()
        return figures

    def observe(self, tokens: Seq[int], logits: Matrix) -> None:
        """The target's logits at rows of which the first fed these tokens."""
        for lookup in self._lookups:
            lookup.observe(tokens, logits)

    def commit(self, sequence: Sequence, tree: DraftTree, rows: Seq[int]) -> None:
        """These rows of the tree were accepted, from the root down; the tokens are emitted."""
        self.figures.drafted.update(tree.sources[1:])
        self.figures.accepted.update(tree.sources[row] for row in rows[1:])
        growth = self._growths.get(sequence)
        if growth is None:
            return
        emitted = sequence.tokens[growth.root.position + 1 :]
        path = growth.follow(emitted)
        self._learn(growth, path, emitted)
        self._move(growth, path, emitted)

    def release(self, sequence: Sequence) -> None:
        """The sequence ended or was paused: forget what is kept for it."""
        self._drop(sequence)
        if self._model is not None:
            self._model.release(sequence)
        for lookup in self._lookups:
            lookup.release(sequence)

    def num_pages(self) -> int:
        """Pages of the target's cache that drafts hold and `reclaim` would give back."""
        return 0 if self._model is None else self._model.num_shared_pages

    def reclaim(self) -> None:
        """Pages are short: give back what was drafted ahead."""
        for sequence in list(self._growths):
            self._drop(sequence)

    def _growth(self, sequence: Sequence) -> Growth:
        growth = self._growths.get(sequence)
        if growth is None or (self._model is not None and not self._model.continues(growth)):
            self._drop(sequence)
            most = sequence.speculation.max_rows
            budget = self._bounds.budget if most is None else min(self._bounds.budget, most)
            growth = self._growths[sequence] = Growth(sequence, budget)
        return growth

    def _drop(self, sequence: Sequence) -> None:
        model, growth = self._model, self._growths.pop(sequence, None)
        if model is None:
            return
        if model.under_way is not None and any(own is growth for own, _ in model.under_way.chosen):
            model.give_up()
        model.shrink(sequence)

    def _look_up(self, growth: Growth) -> None:
        sequence = growth.sequence
        wanted = sequence.speculation.method
        for lookup in self._lookups:
            if wanted in (None, lookup.name, self._model and self._model.name):
                depth = min(self._bounds.depth, sequence.max_draft_depth)
                tree = lookup.propose(sequence, depth, min(growth.budget, self._lookup_rows))
                if tree is not None:
                    growth.insert(prune(tree, sequence), self.policy.calibration)

    def _may_force(self, growth: Growth) -> bool:
        """Whether the tokens that its grammar forces join its tree."""
        wanted = growth.sequence.speculation.method
        return growth.sequence.constraint is not None and growth.budget > 1 and wanted != NO_DRAFT

    def _ranked(self, growth: Growth, rows: int) -> list[Node]:
        """The best nodes; behind likely leaves stands what the grammar forces."""
        nodes = growth.ranked(rows, self._bounds.depth)
        if not self._may_force(growth):
            return nodes
        leaves = [n for n in nodes if not n.children and growth.probability(n) >= LEAST_FORCED]
        longer = [force(growth, leaf) for leaf in leaves]
        return growth.ranked(rows, self._bounds.depth) if any(longer) else nodes

    def _wants_draft(self, growth: Growth) -> bool:
        """Whether there was anything to draft, and the request did not say no."""
        wanted = growth.sequence.speculation.method
        drafts = self._model is not None or bool(self._lookups)
        return drafts and wanted != NO_DRAFT and growth.last > growth.root.position

    def _may_draft(self, growth: Growth) -> bool:
        """Whether the model drafts for it."""
        sequence = growth.sequence
        if self._model is None or sequence.is_cancelled or growth.budget == 1:
            return False
        return sequence.speculation.method in (None, self._model.name)

    def _grow(self, growths: Seq[Growth], fixed_rows: int) -> float:
        """Run the draft model step by step; the seconds that took."""
        drafting = [growth for growth in growths if self._may_draft(growth)]
        began, elapsed = time.perf_counter(), 0.0
        for _ in range(self._bounds.depth if drafting else 0):
            step = self.policy.choose_step(
                drafting,
                self._bounds.width,
                self._bounds.depth,
                elapsed,
                fixed_rows,
                undrafted=len(growths) - len(drafting),
            )
            if not step or not self._step(step):
                break
            elapsed = time.perf_counter() - began
        return elapsed

    def _step(self, step: Seq[tuple[Growth, list[Node]]]) -> int:
        assert self._model is not None
        began = time.perf_counter()
        nodes = sum(len(chosen) for _, chosen in step)
        captured = self._model.num_captured
        rows = self._model.step(step, self.policy.calibration)
        # Neither a prompt's rows nor the making of a graph would tell anything of a step's time.
        if rows == nodes and self._model.num_captured == captured:
            self.policy.draft.observe(rows, time.perf_counter() - began)
        return rows

    def _learn(self, growth: Growth, path: Seq[Node], emitted: Seq[int]) -> None:
        """Compare what was believed of every node reached with what the target took."""
        calibration = self.policy.calibration
        model = self._model.name if self._model is not None else None
        for node, token in zip(path, emitted, strict=False):
            for child in node.children.values():
                for source, belief in child.beliefs.items():
                    calibration.observe(source, belief, hit=child.token == token)
            own = [child for child in node.children.values() if model in child.beliefs]
            if model is not None and own:
                first = max(own, key=lambda child: child.beliefs[model])
                params, belief = growth.sequence.params, first.beliefs[model]
                calibration.observe_first(params, belief, hit=first.token == token)

    def _move(self, growth: Growth, path: Seq[Node], emitted: Seq[int]) -> None:
        """Root the growth at the bonus token, or forget it if that was not drafted."""
        sequence = growth.sequence
        lives = len(path) == len(emitted) + 1 and sequence.finish is None
        if self._model is not None:
            self._model.accept(growth, path[:-1] if lives else path)
        if not lives:
            self._drop(sequence)
            return
        freed = growth.reroot(path[-1])
        if self._model is not None:
            self._model.free(sequence, freed)
