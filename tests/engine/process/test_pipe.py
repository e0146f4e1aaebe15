"""The front end's end of the pipe neither waits to read nor to write."""

import multiprocessing
import os
import pickle
import struct
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from engine.process.pipe import PipeReader, PipeWriter

Pipe = tuple[PipeReader, Connection, Connection]


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    ours, theirs = multiprocessing.Pipe()
    reader = PipeReader(ours)
    yield reader, ours, theirs
    reader.close()
    ours.close()
    theirs.close()


def test_whole_messages_are_read_without_waiting_for_others(pipe: Pipe) -> None:
    reader, _, theirs = pipe
    assert list(reader.read()) == []
    payload = pickle.dumps("cut in two")
    frame = struct.pack("!i", len(payload)) + payload
    os.write(theirs.fileno(), frame[:2])
    assert list(reader.read()) == []
    os.write(theirs.fileno(), frame[2:9])
    assert list(reader.read()) == []
    theirs_next = pickle.dumps("next")
    long_header = struct.pack("!i", -1) + struct.pack("!Q", len(theirs_next))
    os.write(theirs.fileno(), frame[9:] + long_header + theirs_next)
    assert list(reader.read()) == ["cut in two", "next"]
    assert not reader.at_end
    theirs.send("the library's own frame")
    theirs.close()
    assert list(reader.read()) == ["the library's own frame"]
    assert reader.at_end


def test_sending_does_not_wait_and_keeps_the_order(pipe: Pipe) -> None:
    _, ours, theirs = pipe
    writer = PipeWriter(ours)
    large = list(range(1_000_000))  # far more than a pipe holds
    for index in range(3):
        writer.send((index, large))
    assert [theirs.recv()[0] for _ in range(3)] == [0, 1, 2]
    theirs.close()
    writer.send("dropped")
    writer.close()


def test_a_large_message_arrives_whole_through_a_non_blocking_pipe(pipe: Pipe) -> None:
    """libuv makes the pipes that it watches non-blocking."""
    _, ours, theirs = pipe
    os.set_blocking(ours.fileno(), False)
    writer = PipeWriter(ours)
    writer.send("x" * 5_000_000)
    writer.send("after it")
    assert len(theirs.recv()) == 5_000_000
    assert theirs.recv() == "after it"
    theirs.close()
    writer.close()
