"""The stream on which drafting ahead runs while a pass is computed.

Three orders hold. Drafting ahead sees prefixes and pages as they were when the pass began
(`during_pass`), and waits for no kernel of the pass. Whatever changes pages, prefixes or scratch
slots after the pass (storing rows, trimming, closing, the next draft) waits for drafting ahead
(`join`). Memory that one stream has freed while the other one was still reading it is written again
only after one of these two points.
"""

from contextlib import AbstractContextManager, nullcontext


class SideStream:
    """The side stream of a device without streams: all work runs in the order of the calls."""

    def during_pass(self) -> AbstractContextManager[None]:
        """Enter a block that runs a pass: drafting in it runs beside the pass, until its end."""
        return nullcontext()

    def drafting(self) -> AbstractContextManager[None]:
        """Enter a block that drafts: beside the pass if one runs, else on the current stream."""
        return nullcontext()

    def join(self) -> None:
        """Make work that is launched after this call wait for all drafting beside the pass."""
