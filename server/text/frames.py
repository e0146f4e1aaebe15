"""Messages between the front end and its text process: a pickled object, and bytes as they are.

Both ends are our own code. Bodies and answers of megabytes travel beside the object, so that
neither end copies them into a pickle.
"""

import asyncio
import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

_HEAD = struct.Struct("!QQ")  # the length of the pickled object, and of the bytes
LARGE = 1 << 16  # bytes of an object that takes milliseconds to be made
_PIECE = 1 << 18  # bytes that are written at a time: asyncio copies what the pipe has no room for


class Frame(NamedTuple):
    """One message as it travels."""

    pickled: bytes
    raw: bytes

    @property
    def message(self) -> Any:
        return pickle.loads(self.pickled)


def frame(message: object, raw: bytes = b"") -> Frame:
    """Return a message ready to be sent."""
    return Frame(pickle.dumps(message, pickle.HIGHEST_PROTOCOL), raw)


def send(connection: socket.socket, message: Frame, fds: Sequence[int] = ()) -> None:
    """Send a message, and open files with it, from a socket that blocks."""
    head = _HEAD.pack(len(message.pickled), len(message.raw)) + message.pickled
    if fds:
        socket.send_fds(connection, [head[: _HEAD.size]], fds)
        head = head[_HEAD.size :]
    connection.sendall(head)
    if message.raw:  # the other end may be content with the rest, and closed
        connection.sendall(message.raw)


def receive(connection: socket.socket) -> tuple[Frame, list[int]] | None:
    """Return the next message and the files that came with it; None at the end of the pipe."""
    head, fds, _, _ = socket.recv_fds(connection, _HEAD.size, 1)
    rest = _exactly(connection, _HEAD.size - len(head)) if head else None
    if rest is None:
        return None
    num_pickled, num_raw = _HEAD.unpack(head + rest)
    pickled, raw = _exactly(connection, num_pickled), _exactly(connection, num_raw)
    return None if pickled is None or raw is None else (Frame(bytes(pickled), bytes(raw)), fds)


def _exactly(connection: socket.socket, size: int) -> bytearray | None:
    data = bytearray(size)
    view, num_read = memoryview(data), 0
    while num_read < size:
        received = connection.recv_into(view[num_read:])
        if received == 0:
            return None
        num_read += received
    return data


async def write(writer: asyncio.StreamWriter, message: Frame) -> None:
    """Send a message. Raises OSError when the other end is gone."""
    writer.write(_HEAD.pack(len(message.pickled), len(message.raw)) + message.pickled)
    view = memoryview(message.raw)
    for begin in range(0, len(view), _PIECE):
        writer.write(view[begin : begin + _PIECE])
        await writer.drain()
    await writer.drain()


async def read_message(reader: asyncio.StreamReader) -> Any:
    """Return the object of the next message, as `read` does."""
    return await unpickled(await read(reader))


async def unpickled(message: Frame) -> Any:
    """Return the object of a message; a large one is made in a thread, which lets others run."""
    if len(message.pickled) < LARGE:
        return message.message
    return await asyncio.to_thread(pickle.loads, message.pickled)


async def read(reader: asyncio.StreamReader) -> Frame:
    """Return the next message. Raises `IncompleteReadError` or OSError at the end of the pipe."""
    num_pickled, num_raw = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    return Frame(await reader.readexactly(num_pickled), await reader.readexactly(num_raw))
