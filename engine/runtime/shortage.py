"""What an engine does when the device's memory is too little for a pass.

The plan reserves memory for every pass, but other programs may take it, and estimates have limits.
A pass that runs out of memory emits nothing for the sequences that it did not get to. They take
part in the next pass again, which has half the rows and no drafts. Where a pass of few rows fails,
the sequence that attends to the most tokens runs alone next: it needs the most memory, and the
others must not wait for it. Only a request that does not fit alone, with one row, fails.
"""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from engine.messages import Failed
from engine.planning.footprint import size_text
from engine.runtime.load import Loaded
from engine.runtime.requests import Events, Requests
from engine.sequences.scheduler import Scheduler, Turn

log = logging.getLogger(__name__)


class MemoryShortage:
    """Notes that device memory ran out in a step, and makes the next step fit."""

    def __init__(self, loaded: Loaded, scheduler: Scheduler, requests: Requests) -> None:
        self._loaded = loaded
        self._scheduler = scheduler
        self._requests = requests
        self._reason: str | None = None  # the allocator's message, if memory ran out in this step

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Enter a block that ends early, without an error, where device memory runs out.

        When the block is left, its tensors are freed with its frames; `recover` has to follow.
        """
        try:
            yield
        except torch.OutOfMemoryError as error:
            self._reason = str(error).partition("\n")[0]

    def recover(self, turns: Sequence[Turn], events: Events) -> list[Failed]:
        """Prepare the next step after one with these turns, and return the requests that failed.

        If memory ran out, all drafts are dropped and the next passes have fewer rows. Else they
        have more rows again, step by step.

        Args:
            events: the results of the step; without any, no sequence got a token.
        """
        if self._reason is None:
            self._scheduler.raise_max_rows()
            return []
        reason, self._reason = self._reason, None
        self._free()
        rows = sum(turn.num_rows for turn in turns)
        failing = [turn.sequence for turn in turns if turn.sequence is self._scheduler.alone]
        if rows == 1 and failing and not events:  # again, after all that is not needed was freed
            return self._requests.fail(failing, self._describe(reason), "out_of_memory")
        self._scheduler.lower_max_rows(turns)
        log.warning(
            "The device's memory was too little for a pass of %d rows (%s): the next one has at "
            "most %d",
            rows,
            reason,
            self._scheduler.allowed_rows,
        )
        return []

    def _free(self) -> None:
        """Free what is not needed, once the device has ended all work, and start a new pass."""
        self._loaded.device.synchronize()  # the draft's stream too may still use what is freed
        self._loaded.drafting.reclaim()
        self._loaded.stream.seek()
        gc.collect()  # a traceback and its frames may refer to each other
        self._loaded.device.give_back_freed()

    def _describe(self, reason: str) -> str:
        own = self._loaded.device.own_memory()
        free = "" if own is None else f", {size_text(own.free)} are free"
        return (
            f"The device's memory was too little for this request alone ({reason}){free}. End "
            "other programs that use the device, or lower memory.device in the model's file so "
            "that the plan leaves more of it"
        )
