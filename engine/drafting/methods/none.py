"""No drafts: plain decoding, one token a pass."""

from engine.drafting.growth import Bounds
from engine.drafting.method import DraftContext, DraftNeeds, Target


class Plain:
    """Proposes nothing."""

    needs = DraftNeeds(tree_rows=1, scratch_rows=1)
    bounds = Bounds(depth=1, width=1, branch=1, budget=1)

    def build(self, target: Target) -> None:
        return None


def prepare(context: DraftContext) -> Plain:
    return Plain()
