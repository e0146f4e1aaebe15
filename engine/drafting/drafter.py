"""Drafts trees for all sequences: with look-ups first, then with a model as far as that pays.

A sequence has one growth, which lasts from its first draft to its end. `propose` grows it before a
pass and `commit` moves its root to the token that the target chose last. Drafting ahead is running
steps of the draft model while a pass waits for its weights: `draft_ahead`.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, log

from engine.drafting.forcing import force, prune
from engine.drafting.growth import Growth, Node
from engine.drafting.lookups.lookup import Lookup
from engine.drafting.model.draft_model import DraftModel
from engine.drafting.policy import Step, TreePolicy
from engine.drafting.tree import Bounds, DraftTree
from engine.messages import NO_DRAFT, PREDICTION
from engine.model.borrowed import PassCancelled
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sequences.sequence import TokenSequence
from engine.streaming.side_stream import SideStream

LOOKUP_ROWS = 32  # of each look-up's tree beside a draft model: they take time on the host
MIN_AHEAD_SCORE = log(0.002)  # a path less probable than this is not drafted ahead
MIN_FORCED_PROBABILITY = 0.05  # after a leaf less probable, forced tokens are not looked for


@dataclass
class DraftStats:
    """Counts of drafting since the last pass's report."""

    ahead_seconds: float = 0.0
    undrafted: int = 0  # sequences that got a root alone because a draft would not pay
    drafted: Counter[str] = field(default_factory=Counter)  # source -> rows checked
    accepted: Counter[str] = field(default_factory=Counter)  # source -> rows accepted


class Drafting:
    """All drafts of one engine. They affect the speed, never the emitted tokens."""

    def __init__(
        self,
        model: DraftModel | None,
        lookups: Sequence[Lookup],
        bounds: Bounds,
        policy: TreePolicy,
        *,
        can_draft_ahead: bool,
        side_stream: SideStream | None = None,
    ) -> None:
        """Take the drafts of an engine.

        Args:
            model: the draft model; None if only look-ups draft.
            bounds: the largest size of a tree.
            can_draft_ahead: whether the model drafts while a pass waits for weights.
            side_stream: where drafting ahead runs. None: on the stream of everything else.
        """
        self.policy = policy
        self.stats = DraftStats()
        self.side_stream = side_stream or SideStream()
        self._model = model
        self._lookups = lookups
        self._bounds = bounds
        self._can_draft_ahead = can_draft_ahead and model is not None
        self._lookup_rows = bounds.budget if model is None else LOOKUP_ROWS
        self._growths: dict[TokenSequence, Growth] = {}

    @property
    def methods(self) -> tuple[str, ...]:
        """Return the methods that a request may name, beside "auto" and `NO_DRAFT`."""
        names = [lookup.name for lookup in self._lookups if lookup.name != PREDICTION]
        return (*([self._model.name] if self._model else []), *names)

    def propose(
        self,
        sequences: Sequence[TokenSequence],
        rooms: Sequence[int],
        fixed_rows: int,
        max_rows: int,
    ) -> list[DraftTree]:
        """Return a draft tree for each decoding sequence.

        Args:
            rooms: the most rows of each tree, its root included.
            fixed_rows: the prompt rows of the pass.
            max_rows: the most rows of the pass.
        """
        self.finish_ahead()
        growths = [self._get_growth(sequence) for sequence in sequences]
        self._catch_up()
        for growth in growths:
            self._look_up(growth)
            if self._can_force(growth):
                force(growth, growth.root)
        elapsed = self._grow(growths, fixed_rows)
        ranked = [
            self._rank_nodes(growth, min(room, growth.budget))
            for growth, room in zip(growths, rooms, strict=True)
        ]
        probabilities = [
            [g.probability(n) for n in r] for g, r in zip(growths, ranked, strict=True)
        ]
        context = sum(g.root.position for g in growths) / max(len(growths), 1)
        counts = self.policy.allot_rows(
            probabilities,
            elapsed=elapsed,
            fixed_rows=fixed_rows,
            max_rows=max_rows,
            context=context,
        )
        self.stats.undrafted += sum(
            count == 1 and room > 1 and self._is_draftable(growth)
            for count, room, growth in zip(counts, rooms, growths, strict=True)
        )
        return [g.tree(r[:n]) for g, r, n in zip(growths, ranked, counts, strict=True)]

    def draft_ahead(self, seconds: float) -> bool:
        """Use up to `seconds` of idle time in a pass to extend its trees.

        Return True if a step made progress. A step may stop after a layer and continue at the next
        call.
        """
        model = self._model
        if not self._can_draft_ahead or model is None:
            return False
        began = time.perf_counter()
        if model.unfinished is None:
            chosen = self._choose_step_ahead(seconds * model.num_pieces)
            with self.side_stream.drafting():  # the step reads slots and masks that are made here
                model.begin_step(chosen)
        return self._continue_step(model, began, began + seconds)

    def finish_ahead(self) -> None:
        """Finish or drop the unfinished step: the pass waits for no more weights.

        A step is finished if at least half of it was run.
        """
        self.side_stream.join()
        model = self._model
        if model is None or model.unfinished is None:
            return
        began = time.perf_counter()
        if 2 * model.unfinished.resumable.num_run < model.num_pieces:
            model.drop_step()
        else:
            self._continue_step(model, began, inf)

    def _continue_step(self, model: DraftModel, began: float, until: float) -> bool:
        """Run the unfinished step until a time of perf_counter. Return True if it progressed."""
        try:
            with self.side_stream.drafting():
                return model.continue_step(until, self.policy.calibration)
        except PassCancelled:  # all clients of the step left; the pass may serve others
            model.drop_step()
            return False
        finally:
            self.stats.ahead_seconds += time.perf_counter() - began

    def _choose_step_ahead(self, seconds: float) -> Step:
        """Return the most probable nodes that one step is expected to run within `seconds`."""
        depth = 2 * self._bounds.depth + 1  # of this tree, a bonus token and a whole tree below it
        offered = []
        for growth in self._growths.values():
            if self._can_draft(growth):
                nodes = growth.pop(self._bounds.width, depth, MIN_AHEAD_SCORE)
                if nodes:
                    offered.append((growth, nodes))
        return self.policy.choose_step_ahead(offered, seconds)

    def take_stats(self) -> DraftStats:
        """Return the counts since the last call and reset them."""
        stats, self.stats = self.stats, DraftStats()
        return stats

    def observe(self, tokens: Sequence[int], logits: Matrix) -> None:
        """Give all look-ups the target's logits at rows of a pass; the first rows fed `tokens`."""
        for lookup in self._lookups:
            lookup.observe(tokens, logits)

    def commit(self, sequence: TokenSequence, tree: DraftTree, rows: Sequence[int]) -> None:
        """Learn from a pass and move the root of the sequence's growth to its last token.

        Args:
            tree: the verified tree.
            rows: its accepted rows, from the root down. Their tokens are emitted already.
        """
        self.stats.drafted.update(tree.sources[1:])
        self.stats.accepted.update(tree.sources[row] for row in rows[1:])
        growth = self._growths.get(sequence)
        if growth is None:
            return
        emitted = sequence.tokens[growth.root.position + 1 :]
        path = growth.follow(emitted)
        self._learn_from(growth, path, emitted)
        self._move_root(growth, path, emitted)

    def release(self, sequence: TokenSequence) -> None:
        """Forget what is kept for a sequence that ended or was paused."""
        self._drop(sequence)
        if self._model is not None:
            self._model.release(sequence)
        for lookup in self._lookups:
            lookup.release(sequence)

    def detach(self, layers: Sequence[int]) -> None:
        """Let the draft drop weights of the target's layers, whose units will move.

        If it has some, all drafts are dropped. `attach` has to follow before the next pass.
        """
        if self._model is not None and self._model.shares(layers):
            self.side_stream.join()
            self.reclaim()
            self._model.detach(layers)

    def attach(self) -> None:
        """Let the draft take weights of the target's layers again, after their units have moved.

        Raises `ModelError` if weights that travel coded could not be decoded without it.
        """
        if self._model is not None:
            self._model.attach()

    def num_pages(self) -> int:
        """Return the pages of the target's KV cache that drafts hold and `reclaim` would free."""
        return 0 if self._model is None else self._model.num_shared_pages

    def reclaim(self) -> None:
        """Free the pages of all drafts, because sequences need them."""
        for sequence in list(self._growths):
            self._drop(sequence)

    def _get_growth(self, sequence: TokenSequence) -> Growth:
        """Return the sequence's growth, or a new one if there is none or its KV is gone."""
        growth = self._growths.get(sequence)
        if growth is None or (self._model is not None and not self._model.can_continue(growth)):
            self._drop(sequence)
            most = sequence.speculation.max_rows
            budget = self._bounds.budget if most is None else min(self._bounds.budget, most)
            growth = self._growths[sequence] = Growth(sequence, budget)
        return growth

    def _catch_up(self) -> None:
        """Bring the states that the draft model may read now or in the pass up to date."""
        if self._model is not None:
            growths = self._growths.values()
            self._model.caches.catch_up([own.sequence for own in growths if self._can_draft(own)])

    def _drop(self, sequence: TokenSequence) -> None:
        """Forget the sequence's growth and free the scratch pages of the draft model for it."""
        model, growth = self._model, self._growths.pop(sequence, None)
        if model is None:
            return
        if model.unfinished is not None and any(
            own is growth for own, _ in model.unfinished.chosen
        ):
            model.drop_step()
        model.close_scratch(sequence)

    def _look_up(self, growth: Growth) -> None:
        """Add the trees of all look-ups that the request allows to the growth."""
        sequence = growth.sequence
        wanted = sequence.speculation.method
        for lookup in self._lookups:
            if wanted in (None, lookup.name, self._model and self._model.name):
                depth = min(self._bounds.depth, sequence.max_draft_depth)
                tree = lookup.propose(sequence, depth, min(growth.budget, self._lookup_rows))
                if tree is not None:
                    growth.insert(prune(tree, sequence), self.policy.calibration)

    def _can_force(self, growth: Growth) -> bool:
        """Return True if the tokens that a grammar or a budget forces may join the tree."""
        sequence = growth.sequence
        wanted = sequence.speculation.method
        can_force = sequence.can_force(self._bounds.depth)
        return can_force and growth.budget > 1 and wanted != NO_DRAFT

    def _rank_nodes(self, growth: Growth, rows: int) -> list[Node]:
        """Return the best nodes, after adding the tokens that are forced to likely leaves."""
        nodes = growth.ranked(rows, self._bounds.depth)
        if not self._can_force(growth):
            return nodes
        leaves = [
            n for n in nodes if not n.children and growth.probability(n) >= MIN_FORCED_PROBABILITY
        ]
        longer = [force(growth, leaf) for leaf in leaves]
        return growth.ranked(rows, self._bounds.depth) if any(longer) else nodes

    def _is_draftable(self, growth: Growth) -> bool:
        """Return True if a draft was possible and the request does not rule it out."""
        wanted = growth.sequence.speculation.method
        drafts = self._model is not None or bool(self._lookups)
        return drafts and wanted != NO_DRAFT and growth.last_position > growth.root.position

    def _can_draft(self, growth: Growth) -> bool:
        """Return True if the draft model may run nodes of this growth."""
        sequence = growth.sequence
        if self._model is None or not self._model.is_usable:
            return False
        if sequence.is_cancelled or growth.budget == 1:
            return False
        return sequence.speculation.method in (None, self._model.name)

    def _grow(self, growths: Sequence[Growth], fixed_rows: int) -> float:
        """Run steps of the draft model while they pay, and return the seconds that they took."""
        drafting = [growth for growth in growths if self._can_draft(growth)]
        began, elapsed = time.perf_counter(), 0.0
        for _ in range(self._bounds.depth if drafting else 0):
            step = self.policy.choose_step(
                drafting,
                width=self._bounds.width,
                depth=self._bounds.depth,
                elapsed=elapsed,
                fixed_rows=fixed_rows,
                undrafted=len(growths) - len(drafting),
            )
            if not step or not self._run_step(step):
                break
            elapsed = time.perf_counter() - began
        return elapsed

    def _run_step(self, step: Sequence[tuple[Growth, list[Node]]]) -> int:
        """Run a draft step, time it, and return the number of its rows."""
        assert self._model is not None
        began = time.perf_counter()
        nodes = sum(len(chosen) for _, chosen in step)
        rows = self._model.step(step, self.policy.calibration)
        if rows == nodes:  # steps with prompt rows take longer
            self.policy.draft.observe(rows, time.perf_counter() - began)
        return rows

    def _learn_from(self, growth: Growth, path: Sequence[Node], emitted: Sequence[int]) -> None:
        """Calibrate the drafts by which children of each reached node the target took."""
        calibration = self.policy.calibration
        model = self._model.name if self._model is not None else None
        for node, token in zip(path, emitted, strict=False):
            for child in node.children.values():
                for source, logprob in child.logprobs.items():
                    calibration.observe(source, logprob, hit=child.token == token)
            own = [child for child in node.children.values() if model in child.logprobs]
            if model is not None and own:
                first = max(own, key=lambda child: child.logprobs[model])
                params, logprob = growth.sequence.params, first.logprobs[model]
                calibration.observe_first(params, logprob, hit=first.token == token)

    def _move_root(self, growth: Growth, path: Sequence[Node], emitted: Sequence[int]) -> None:
        """Make the bonus token the root, or drop the growth if that token was not drafted."""
        sequence = growth.sequence
        is_drafted = len(path) == len(emitted) + 1 and sequence.finish is None
        if self._model is not None:
            self._model.accept(growth, path[:-1] if is_drafted else path)
        if not is_drafted:
            self._drop(sequence)
            return
        freed = growth.reroot(path[-1])
        if self._model is not None:
            self._model.free_slots(sequence, freed)
