"""The passes by which a family is checked: prompts, sequences beside each other, a tree."""

from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event

import torch
from torch import Tensor

from engine.model.reference import Reference
from engine.model.segment import Segment
from engine.recurrent.states import SequenceState
from engine.spec import TILE

ROWS = (1, TILE + 1, 2 * TILE + 2)  # of a prompt: less than a tile, two tiles, three tiles
SEQUENCES = 2  # of a pass
PAGES = 4  # of the KV cache, for all of these tokens
_PREFIX = 40  # cached tokens, which a tree and a longer prompt follow
_OTHER = 47  # tokens of another sequence of the same pass
_PARENTS = (-1, -1, 0, 0, 1, 2)  # of each node of a tree; -1: the last token of the prefix
_AFTER = 3  # tokens after a branch of the tree


@dataclass(frozen=True)
class Case:
    """Rows of some sequences that run in one pass, and their logits [rows, V] by the library."""

    name: str
    parts: Sequence["Rows"]
    want: Tensor


def make_cases(reference: Reference) -> list[Case]:
    """Return the passes to compare, in the order in which they find what others have cached."""
    prompt, other = reference.tokens(ROWS[-1]), reference.tokens(_OTHER, seed=1)
    want = [reference.logits(prompt[:count]) for count in ROWS]
    cases = [
        Case(f"{count} rows", [_chain(prompt[:count])], logits)
        for count, logits in zip(ROWS, want, strict=True)
    ]
    prefix, rest = prompt[:_PREFIX], [_chain(prompt, start=_PREFIX)]
    cases.append(Case("a prompt whose beginning is cached", rest, want[-1][_PREFIX:]))
    both = [_chain(prefix), _chain(other, first_slot=ROWS[-1])]
    logits = torch.cat([reference.logits(prefix), reference.logits(other)])
    cases.append(Case("two sequences", both, logits))
    nodes = reference.tokens(len(_PARENTS), seed=2)
    paths = [_path(node) for node in range(len(_PARENTS))]
    texts = [[*prefix, *(nodes[node] for node in path)] for path in paths]
    logits = torch.stack([reference.logits(text)[-1] for text in texts])
    tree = _tree(texts, paths)
    cases.append(Case("a tree", [tree], logits))
    branch = _chain(texts[-1], start=_PREFIX)  # which has the same rows as the tree
    cases.append(Case("a branch of a tree", [branch], logits[paths[-1]]))
    text = [*texts[-1], *reference.tokens(_AFTER, seed=3)]
    after = _after(text, tree, paths[-1])
    cases.append(Case("what follows a branch of a tree", [after], reference.logits(text)[-_AFTER:]))
    return cases


def _path(node: int) -> list[int]:
    """Return the nodes from the root of the tree to a node."""
    parent = _PARENTS[node]
    return [node] if parent < 0 else [*_path(parent), node]


@dataclass(frozen=True)
class Rows:
    """Rows of one sequence: the tokens up to each row, the slots, and what rows see in a tree."""

    texts: Sequence[Sequence[int]]
    slots: Tensor  # of the sequence's prefix and of these rows
    mask: Tensor | None = None
    before: "Rows | None" = None  # the rows of the sequence that have run before these
    kept: Sequence[int] = ()  # those of them that the prefix consists of, or ends with

    @property
    def tokens(self) -> list[int]:
        """The tokens of the rows."""
        return [text[-1] for text in self.texts]

    @property
    def positions(self) -> list[int]:
        """The positions of the rows in their sequence."""
        return [len(text) - 1 for text in self.texts]

    def segment(self, first: int, state: SequenceState, *, is_long: bool) -> Segment:
        """Return the segment of these rows, the first of which is row `first` of the pass."""
        return Segment(
            first=first,
            count=len(self.texts),
            start=len(self.slots) - len(self.texts),
            slots=self.slots,
            positions=torch.tensor(self.positions),
            mask=self.mask,
            cancelled=Event(),
            is_long=is_long,
            state=state,
        )


def _chain(tokens: Sequence[int], *, start: int = 0, first_slot: int = 0) -> Rows:
    """Return the rows of a sequence after its first `start` tokens, which were run before."""
    texts = [tokens[: index + 1] for index in range(start, len(tokens))]
    before = _chain(tokens[:start], first_slot=first_slot) if start else None
    slots = torch.arange(first_slot, first_slot + len(tokens))
    return Rows(texts, slots, before=before, kept=range(start))


def _tree(texts: Sequence[Sequence[int]], paths: Sequence[Sequence[int]]) -> Rows:
    """Return the rows of a tree after the prefix. Each node sees the nodes of its path."""
    mask = torch.zeros(len(paths), len(paths), dtype=torch.bool)
    for node, path in enumerate(paths):
        mask[node, list(path)] = True
    own = torch.arange(len(paths)) + ROWS[-1] + _OTHER
    before, kept = _chain(texts[0][:_PREFIX]), range(_PREFIX)
    return Rows(texts, torch.cat([torch.arange(_PREFIX), own]), mask, before, kept)


def _after(text: Sequence[int], tree: Rows, path: Sequence[int]) -> Rows:
    """Return the last rows of a text, after the rows of a tree that are on a path."""
    start = _PREFIX + len(path)
    kept = tree.slots[[*range(_PREFIX), *(_PREFIX + node for node in path)]]
    own = int(tree.slots.max()) + 1 + torch.arange(len(text) - start)
    texts = [text[: index + 1] for index in range(start, len(text))]
    return Rows(texts, torch.cat([kept, own]), before=tree, kept=path)
