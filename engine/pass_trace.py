"""A report of one pass for one choice: what the pass took, and the draft tree that it verified."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class DraftedNodes:
    """Drafted tokens of a tree, one entry in each column for each node; parents come first.

    A score is the log-probability of the path down to the node, by the draft.
    """

    parents: tuple[int, ...] = ()  # the number of the parent's node; -1: the last emitted token
    tokens: tuple[int, ...] = ()
    sources: tuple[str, ...] = ()  # what proposed the token
    scores: tuple[float, ...] = ()
    accepted: tuple[bool, ...] = ()  # whether the token was emitted

    def __len__(self) -> int:
        return len(self.tokens)

    def only_accepted(self) -> "DraftedNodes":
        """Return the accepted nodes, which are one path."""
        kept = [node for node, own in enumerate(self.accepted) if own]
        return DraftedNodes(
            parents=tuple(range(-1, len(kept) - 1)),
            tokens=tuple(self.tokens[node] for node in kept),
            sources=tuple(self.sources[node] for node in kept),
            scores=tuple(self.scores[node] for node in kept),
            accepted=(True,) * len(kept),
        )


@dataclass(frozen=True)
class PassTrace:
    """One pass that ran rows of a choice."""

    number: int  # of the choice's pass, from 1; the number of a token's origin
    tokens: int  # emitted for the choice; 0 while its prompt goes on
    own_rows: int  # of the choice: tokens of its prompt, or its last token and the drafted ones
    rows: int  # of all sequences of the pass
    sequences: int
    pass_ms: float
    draft_ms: float  # drafting before the pass
    copy_stall_ms: float  # of the pass, spent waiting for weights
    link_bytes: int
    nodes: DraftedNodes = DraftedNodes()
    nodes_left_out: int = 0  # rejected ones
    passes_left_out: int = 0  # of the prompt, before this one

    def without_rejected(self) -> "PassTrace":
        """Return the trace with the accepted nodes only; the others are counted as left out."""
        kept = self.nodes.only_accepted()
        left_out = self.nodes_left_out + len(self.nodes) - len(kept)
        return replace(self, nodes=kept, nodes_left_out=left_out)
