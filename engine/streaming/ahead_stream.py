"""Where drafting ahead runs while a pass is computed.

Three orders are kept. What is drafted ahead sees prefixes and pages as they were when the pass
began (`passing`), and waits for no kernel of the pass. What touches pages, prefixes or scratch
after the pass (keep, accept, trim, close, the next draft) waits for what was drafted ahead
(`join`). And memory that one stream gave back to its allocator, while the other one still read it,
is written again only after such a border.
"""

from contextlib import AbstractContextManager, nullcontext


class Aside:
    """Where drafting ahead runs. Without streams, everything happens in the order of its calls."""

    def passing(self) -> AbstractContextManager[None]:
        """Enter a block that walks a pass: what is drafted in it runs beside it until the end."""
        return nullcontext()

    def drafting(self) -> AbstractContextManager[None]:
        """Enter a block that drafts: beside the pass within one, else on the current stream."""
        return nullcontext()

    def join(self) -> None:
        """Make what is launched from here on come after all that was drafted beside the pass."""
