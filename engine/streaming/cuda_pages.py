"""Copies of idle KV pages between a CUDA device and pinned host memory.

In the pool the memory of a page is 2 L separate runs, so a page is copied through a contiguous
staging page on the device. Once it is there, the page in the pool may be written again, while its
bytes are still on the link.
"""

# mypy: disallow-untyped-calls=False
# torch.cuda declares no types for streams and events.

import logging
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.streaming.device import Device
from engine.streaming.page_store import PageStore, num_staging_pages, page_bytes

logger = logging.getLogger(__name__)


class CudaPageStore(PageStore):
    """A page store that copies on a CUDA stream of its own.

    All copies run in order on that stream, so a copy writes a staging page or a host place only
    after the last copy has read it. The host never waits. The compute stream waits only before it
    uses a page that a copy still uses (`wait`).
    """

    def __init__(self, pool: Tensor, num_places: int, device: Device) -> None:
        super().__init__(pool, num_places, device.pin)
        self.device = device.torch_device
        self.stream = torch.cuda.Stream(self.device)
        if not self._buffer.is_pinned:
            logger.warning(
                "The system refused to pin %.0f MiB of RAM for idle KV pages: they travel more "
                "slowly. Raise the locked-memory limit (ulimit -l, or the container's).",
                self._buffer.memory.nbytes / 2**20,
            )
        pages = num_staging_pages(page_bytes(pool), num_places)
        try:
            with torch.inference_mode(False):
                self._staging = torch.empty(
                    pages, pool.shape[0], pool.shape[2], dtype=pool.dtype, device=self.device
                )
        except torch.OutOfMemoryError as error:
            self.close()
            raise ModelError(
                f"{device} has no room for {pages} staging pages of KV ({error}). "
                "Lower memory.device."
            ) from error
        self._issued = 0
        self._ended = 0
        self._events: deque[tuple[int, torch.cuda.Event]] = (
            deque()
        )  # by ticket, of copies that may still run

    def save(self, pages: Sequence[int], places: Sequence[int]) -> int:
        self._follow_compute()
        with torch.cuda.stream(self.stream):
            for batch in self._batches(pages, places):
                for page, _, staged in batch:
                    staged.copy_(self._pool[:, page], non_blocking=True)
                ticket = self._issue_ticket()  # the last batch's ticket is returned
                for _, place, staged in batch:
                    self._places[place].copy_(staged, non_blocking=True)
        return ticket

    def load(self, places: Sequence[int], pages: Sequence[int]) -> int:
        self._follow_compute()
        with torch.cuda.stream(self.stream):
            for batch in self._batches(pages, places):
                for _, place, staged in batch:
                    staged.copy_(self._places[place], non_blocking=True)
                for page, _, staged in batch:
                    self._pool[:, page].copy_(staged, non_blocking=True)
            return self._issue_ticket()

    def copy_out(self, place: int) -> Tensor:
        self.stream.synchronize()  # a ticket says only that the page of the pool was read
        return super().copy_out(place)

    def done(self, ticket: int) -> bool:
        while self._events and self._events[0][1].query():
            self._ended, _ = self._events.popleft()
        return ticket <= self._ended

    def wait(self, ticket: int) -> None:
        if not self.done(ticket):
            event = next(event for number, event in self._events if number >= ticket)
            torch.cuda.current_stream(self.device).wait_event(event)

    def close(self) -> None:
        self.stream.synchronize()
        super().close()

    def _follow_compute(self) -> None:
        """Make later copies run after the work launched on the current stream so far."""
        launched = torch.cuda.Event()
        launched.record(torch.cuda.current_stream(self.device))
        self.stream.wait_event(launched)

    def _issue_ticket(self) -> int:
        """Return the ticket of all copies launched so far."""
        event = torch.cuda.Event()
        event.record(self.stream)
        self._issued += 1
        self._events.append((self._issued, event))
        return self._issued

    def _batches(
        self, pages: Sequence[int], places: Sequence[int]
    ) -> Iterator[list[tuple[int, int, Tensor]]]:
        """Yield batches of (page, place, staging page), each batch with different staging pages."""
        pairs = list(zip(pages, places, strict=True))
        for first in range(0, len(pairs), len(self._staging)):
            batch = pairs[first : first + len(self._staging)]
            yield [(*pair, staged) for pair, staged in zip(batch, self._staging, strict=False)]
