"""Traces of passes, for requests that ask for them: they are attached to the tokens of the pass."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from engine.drafting.tree import DraftTree
from engine.messages import PassStats, Tokens
from engine.pass_trace import DraftedNodes, PassTrace
from engine.runtime.passes import Entry, Pass
from engine.runtime.requests import Events
from engine.sequences.sequence import Request, TokenSequence

MAX_NODES = 128  # of one pass, unless more are accepted
MAX_HELD = 256  # passes of a prompt that wait for its first token
LOWEST_SCORE = -9999.0  # JSON has no infinity


@dataclass
class _Held:
    """The latest passes of a sequence that emitted nothing, to be sent with its next token."""

    traces: deque[PassTrace] = field(default_factory=deque)
    left_out: int = 0

    def add(self, trace: PassTrace) -> None:
        if len(self.traces) == MAX_HELD:
            self.traces.popleft()
            self.left_out += 1
        self.traces.append(trace)

    def take(self) -> list[PassTrace]:
        if not self.traces:
            return []
        first, *others = self.traces
        return [replace(first, passes_left_out=self.left_out), *others]


class PassTraces:
    """The traces of the requests with `Generate.traced_nodes`; others cost nothing."""

    def __init__(self) -> None:
        self._held: WeakKeyDictionary[TokenSequence, _Held] = WeakKeyDictionary()
        self._num_left: WeakKeyDictionary[Request, int] = WeakKeyDictionary()  # nodes

    def attach(self, rows: Pass, figures: PassStats, events: Events) -> None:
        """Add the trace of a finished pass to its messages in `events`.

        The passes of a prompt are sent with the first token of the request's first choice.
        """
        entries = [own for own in rows.entries if own.sequence.request.message.traced_nodes]
        if not entries:
            return
        by_choice = {(own.sequence.request_id, own.sequence.choice): own for own in entries}
        # The other choices of a new request have their first token from the entry of its first one.
        by_request = {own.sequence.request_id: own for own in entries}
        for number, event in enumerate(events):
            if not isinstance(event, Tokens) or event.is_replayed or event.stats is None:
                continue
            own = by_choice.pop((event.request_id, event.choice), None)
            held = [] if own is None else self._held.pop(own.sequence, _Held()).take()
            if (entry := own or by_request.get(event.request_id)) is not None:
                trace = self._trace(entry, figures, event.stats.passes, event.ids)
                events[number] = replace(event, traces=(*held, trace))
        for entry in by_choice.values():
            if not entry.sequence.is_cancelled:
                trace = self._trace(entry, figures, entry.sequence.passes, ())
                self._held.setdefault(entry.sequence, _Held()).add(trace)

    def _trace(
        self, entry: Entry, figures: PassStats, number: int, ids: Sequence[int]
    ) -> PassTrace:
        """Return the trace of a pass in which `ids` were emitted for a choice of the entry."""
        tree, request = entry.tree, entry.sequence.request
        nodes = DraftedNodes() if tree is None else drafted_nodes(tree, ids)
        num_drafted = 0 if tree is None else len(tree) - 1
        trace = PassTrace(
            number=number,
            tokens=len(ids),
            own_rows=entry.num_before_tree + (0 if tree is None else len(tree)),
            rows=figures.rows,
            sequences=figures.sequences,
            pass_ms=figures.pass_ms,
            draft_ms=figures.draft_ms,
            copy_stall_ms=figures.copy_stall_ms,
            link_bytes=figures.link_bytes,
            nodes=nodes,
            nodes_left_out=num_drafted - len(nodes),
        )
        left = self._num_left.get(request, request.message.traced_nodes)
        if len(nodes) > left:
            trace = trace.without_rejected()
        self._num_left[request] = max(0, left - len(trace.nodes))
        return trace


def drafted_nodes(tree: DraftTree, ids: Sequence[int]) -> DraftedNodes:
    """Return the drafted nodes of a tree after which `ids` were emitted.

    If there are more than `MAX_NODES`, they are the accepted ones and those with the best scores.
    """
    accepted = _accepted_rows(tree, ids)
    kept: Sequence[int] = range(1, len(tree))
    if len(kept) > MAX_NODES:
        best = sorted(kept, key=lambda row: (row not in accepted, -tree.scores[row], row))
        kept = sorted(best[: max(MAX_NODES, len(accepted))])
    node_of = {0: -1}
    for row in kept:
        if tree.parents[row] in node_of:  # else rounding has put the parent after its child
            node_of[row] = len(node_of) - 1
    rows = [row for row in node_of if row]
    return DraftedNodes(
        parents=tuple(node_of[tree.parents[row]] for row in rows),
        tokens=tuple(tree.tokens[row] for row in rows),
        sources=tuple(tree.sources[row] for row in rows),
        scores=tuple(round(max(tree.scores[row], LOWEST_SCORE), 3) for row in rows),
        accepted=tuple(row in accepted for row in rows),
    )


def _accepted_rows(tree: DraftTree, ids: Sequence[int]) -> set[int]:
    """Return the rows of a tree whose tokens were emitted: the path of `ids` from the root."""
    rows: set[int] = set()
    row = 0
    for token in ids:
        child = tree.children(row).get(token)
        if child is None:
            break
        rows.add(row := child)
    return rows
