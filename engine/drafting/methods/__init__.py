'''Drafting methods, one file each: adding a file adds a method.

The name in a model's YAML (`draft.method`) is the file's name; nothing is registered by hand. A
file defines `FACTS`, which plans, checks and `draft: auto` read, and one function: `lookup`, which
returns a look-up that also joins the trees of every draft model and takes no draft time, or else
`prepare`, which returns a function that builds the draft. The front end reads the facts too, so a
file imports torch, and modules that import torch, only inside functions.

The complete example is a look-up that expects the last token once more, `repeat.py`:

    """Repetition: guess that the last token comes once more."""

    from engine.drafting.method import MethodFacts
    from engine.drafting.tree import Bounds, DraftTree

    FACTS = MethodFacts(
        bounds=Bounds(depth=1, width=1, branch=1, budget=2),
        agreement=0.1,  # one token in ten repeats the one before it
        is_candidate=True,  # `draft: auto` considers it
    )


    class Repeat:
        """A look-up that guesses the last token again."""

        name = "repeat"

        def propose(self, sequence, depth, rows) -> DraftTree | None:
            if min(depth, rows - 1, sequence.max_draft_depth) < 1:
                return None
            return DraftTree.chain([sequence.tokens[-1]] * 2, [0.0, -1.0], self.name)

        def observe(self, tokens, logits) -> None:
            """Ignore the target's logits at the rows of a pass."""

        def release(self, sequence) -> None:
            """Do nothing: no state is kept for a sequence."""


    def lookup() -> Repeat:
        return Repeat()

`ngram.py` is a short real look-up. `specexec.py` and `subspec.py` draft with a model: their `needs`
returns the memory that it takes, and their `prepare` returns a function that builds a `DraftModel`.
'''

from pkgutil import iter_modules


def available() -> list[str]:
    """Return the names of all drafting methods."""
    return sorted(module.name for module in iter_modules(__path__))
