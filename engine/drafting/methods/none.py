"""No drafts: plain decoding, one token a pass."""

from engine.drafting.method import BuildDraft, DraftContext, MethodFacts
from engine.drafting.tree import Bounds

FACTS = MethodFacts(bounds=Bounds(depth=1, width=1, branch=1, budget=1), proposes=False)


def prepare(context: DraftContext) -> BuildDraft:
    return lambda target: None
