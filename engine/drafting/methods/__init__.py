'''Drafting methods, one file each: add a file, get a method.

The name in a model's YAML (`draft.method`) is the file's name; nothing is registered by hand. A
file has `FACTS`, read by plans, checks and `draft: auto`, and a function that makes what drafts:
`lookup` for a look-up, which also joins the trees of every draft model at no draft time, else
`prepare`. The front end reads the facts too: a file imports torch, and whatever imports torch, only
inside functions.

The complete example is a look-up that expects the last token once more, `repeat.py`:

    """Repetition: the last token may come once more."""

    from engine.drafting.method import MethodFacts
    from engine.drafting.tree import Bounds, DraftTree

    FACTS = MethodFacts(
        bounds=Bounds(depth=1, width=1, branch=1, budget=2),
        agreement=0.1,  # one token in ten repeats the one before it
        is_candidate=True,  # `draft: auto` considers it
    )


    class Repeat:
        name = "repeat"

        def propose(self, sequence, depth, rows) -> DraftTree | None:
            if min(depth, rows - 1, sequence.max_draft_depth) < 1:
                return None
            return DraftTree.chain([sequence.tokens[-1]] * 2, [0.0, -1.0], self.name)

        def observe(self, tokens, logits) -> None:
            """The target's logits at the rows of a pass: this method learns nothing of them."""

        def release(self, sequence) -> None:
            """The sequence ended: this method keeps nothing of it."""


    def lookup() -> Repeat:
        return Repeat()

`ngram.py` is a short real look-up. `specexec.py` and `subspec.py` draft by a model: their `needs`
say what it takes of the device, and their `prepare` returns what makes a `DraftModel`.
'''

from pkgutil import iter_modules


def available() -> list[str]:
    """Return the names of all drafting methods."""
    return sorted(module.name for module in iter_modules(__path__))
