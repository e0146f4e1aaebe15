"""Tests of the limit of pieces in a copy stream, with events that tests let happen."""

from typing import Any

import pytest
import torch

from engine.streaming import cuda_copies
from engine.streaming.cuda_copies import FEWEST, MOST, CopyWindow


class Stream:
    """A stream whose pieces end when the host waits for them, or when `finish` is called."""

    def __init__(self) -> None:
        self.launched = 0
        self.ended = 0
        self.most = 0  # pieces that were in the stream at once

    def finish(self) -> None:
        self.ended = self.launched


class Event:
    """An event after the pieces that were launched before it was recorded."""

    def __init__(self, blocking: bool) -> None:
        assert blocking, "the thread must not spin"

    def record(self, stream: Any) -> None:
        self.stream: Stream = stream
        self.after: int = stream.launched

    def query(self) -> bool:
        return self.stream.ended >= self.after

    def synchronize(self) -> None:
        self.stream.ended = max(self.stream.ended, self.after)


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(torch.cuda, "Event", Event)
    return Stream()


def launch(window: CopyWindow, stream: Stream, pieces: int, *, in_time: bool) -> None:
    """Launch the pieces of a unit, each after the device has ended all before unless `in_time`."""
    for number in range(pieces):
        if not in_time:
            stream.finish()
        with window.piece(is_first=number == 0):
            stream.launched += 1
            stream.most = max(stream.most, stream.launched - stream.ended)


def test_few_pieces_are_in_the_stream_where_they_are_launched_in_time(stream: Stream) -> None:
    window = CopyWindow(stream)  # type: ignore[arg-type]  # a fake
    for _ in range(3):
        launch(window, stream, 50, in_time=True)
    assert stream.most == window.limit == FEWEST
    assert len(window._launched) + len(window._unused) == FEWEST, "events are used again"


def test_units_that_wait_for_a_slot_do_not_raise_the_limit(stream: Stream) -> None:
    window = CopyWindow(stream)  # type: ignore[arg-type]  # a fake
    for _ in range(20):
        stream.finish()
        launch(window, stream, 5, in_time=True)
    assert window.limit == FEWEST


def test_the_limit_follows_the_thread(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_copies, "IN_TIME", 10)
    window = CopyWindow(stream)  # type: ignore[arg-type]  # a fake
    launch(window, stream, 4, in_time=False)  # the first one is never late
    assert window.limit == FEWEST + 3
    launch(window, stream, 100, in_time=False)
    assert window.limit == MOST
    launch(window, stream, 11, in_time=True)
    assert window.limit == MOST - 1
    launch(window, stream, 1000, in_time=True)
    assert window.limit == FEWEST
