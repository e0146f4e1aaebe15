"""No drafts: plain decoding, which emits one token a pass."""

from engine.drafting.method import BuildDraft, DraftContext, MethodFacts
from engine.drafting.tree import Bounds

FACTS = MethodFacts(bounds=Bounds(depth=1, width=1, branch=1, budget=1), has_drafts=False)


def prepare(context: DraftContext) -> BuildDraft:
    """Return a function that builds no draft."""
    return lambda target: None
