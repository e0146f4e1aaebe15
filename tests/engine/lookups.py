"""Helpers that run look-ups against a target which writes a given text, and check their trees."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from engine.drafting.lookups.lookup import Lookup
from engine.drafting.tree import DraftTree
from engine.runtime.verify import verify
from engine.sequences.sequence import TokenSequence
from tests.engine.sequence_makers import make_sequence

Path = tuple[int, ...]


def answering(
    prompt: Sequence[int],
    emitted: Sequence[int] = (),
    prediction: Sequence[int] = (),
    **arguments: Any,
) -> TokenSequence:
    """Return a sequence that has emitted these tokens. Keyword arguments as in `make_sequence`."""
    sequence = make_sequence(prompt, prediction=prediction, **arguments)
    sequence.tokens += emitted
    return sequence


def paths(tree: DraftTree | None) -> dict[Path, float]:
    """Return the score of each path of tokens below the root."""
    if tree is None:
        return {}
    return {
        tuple(tree.tokens[r] for r in tree.path(row)[1:]): tree.scores[row]
        for row in range(1, len(tree))
    }


def leaves(tree: DraftTree | None) -> list[Path]:
    """Return the paths that end in a leaf, best scores of their beginnings first."""
    found = paths(tree)
    ends = [path for path in found if not any(o[:-1] == path for o in found)]
    return sorted(ends, key=lambda path: [-found[path[: n + 1]] for n in range(len(path))])


def check(
    tree: DraftTree | None, sequence: TokenSequence, depth: int, rows: int, name: str
) -> None:
    """Check what holds for every tree of a look-up. The tree itself checks its shape."""
    if tree is None:
        return
    assert tree.tokens[0] == sequence.tokens[-1]
    assert 1 < len(tree) <= rows
    assert max(tree.depths) <= min(depth, sequence.max_draft_depth)
    assert tree.scores[0] == 0 and tree.sources == ("", *(name,) * (len(tree) - 1))
    for row in range(1, len(tree)):
        assert tree.scores[row] < tree.scores[tree.parents[row]]
        assert tree.parents[row] == 0 or not sequence.is_terminal(tree.tokens[tree.parents[row]])


def writing(
    lookup: Lookup,
    sequence: TokenSequence,
    text: Sequence[int],
    *,
    depth: int = 48,
    rows: int = 64,
    after: Callable[[DraftTree, Sequence[int]], None] = lambda tree, wanted: None,
) -> Iterator[int]:
    """Run passes of a target that writes this text, and yield the number of tokens of each.

    Args:
        after: is called with the tree of each pass and the text that follows its root.
    """
    begin = len(sequence.tokens)
    while (done := len(sequence.tokens) - begin) < len(text):
        found = lookup.propose(sequence, depth, rows)
        check(found, sequence, depth, rows, lookup.name)
        tree = found or DraftTree.root(sequence.tokens[-1])
        wanted = [*text[done:], *(-1,) * (max(tree.depths) + 1)]
        walked = verify(tree, partial(_chosen, tree, wanted), lambda row, token: False)
        tokens = [token for row in walked if (token := _chosen(tree, wanted, row)) >= 0]
        sequence.tokens += tokens
        after(tree, wanted)
        yield len(tokens)


def _chosen(tree: DraftTree, wanted: Sequence[int], row: int) -> int:
    return wanted[tree.depths[row]]


def passes(lookup: Lookup, sequence: TokenSequence, text: Sequence[int], **arguments: Any) -> int:
    """Return the number of passes that the text takes."""
    return sum(1 for _ in writing(lookup, sequence, text, **arguments))
