"""Messages between the front end and its text process: a pickled object followed by raw bytes.

Unpickling is safe here because both ends run this program's own code. Large bodies and answers are
sent as raw bytes after the pickled object, so that neither end copies them into a pickle.
"""

import asyncio
import pickle
import socket
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

_HEAD = struct.Struct("!QQ")  # the lengths of the pickled object and of the raw bytes
LARGE = 1 << 16  # bytes of a pickle that takes milliseconds to unpickle
_PIECE = 1 << 18  # bytes per write: asyncio copies the part for which the pipe has no room


class Frame(NamedTuple):
    """One message in the form in which it is sent: a pickle and raw bytes."""

    pickled: bytes
    raw: bytes

    @property
    def message(self) -> Any:
        return pickle.loads(self.pickled)


def frame(message: object, raw: bytes = b"") -> Frame:
    """Return `message`, pickled, and `raw` as a frame that is ready to be sent."""
    return Frame(pickle.dumps(message, pickle.HIGHEST_PROTOCOL), raw)


def send(connection: socket.socket, message: Frame, fds: Sequence[int] = ()) -> None:
    """Send a message, together with open file descriptors, on a blocking socket."""
    head = _HEAD.pack(len(message.pickled), len(message.raw)) + message.pickled
    if fds:
        socket.send_fds(connection, [head[: _HEAD.size]], fds)
        head = head[_HEAD.size :]
    connection.sendall(head)
    if message.raw:  # sending nothing would fail if the other end had closed after the pickle
        connection.sendall(message.raw)


def receive(connection: socket.socket) -> tuple[Frame, list[int]] | None:
    """Return the next message and the file descriptors sent with it; None at the pipe's end."""
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
    """Send a message without blocking the loop. Raises OSError when the other end is closed."""
    writer.write(_HEAD.pack(len(message.pickled), len(message.raw)) + message.pickled)
    view = memoryview(message.raw)
    for begin in range(0, len(view), _PIECE):
        writer.write(view[begin : begin + _PIECE])
        await writer.drain()
    await writer.drain()


async def read_message(reader: asyncio.StreamReader) -> Any:
    """Return the unpickled object of the next message. Raises the errors of `read`."""
    return await unpickled(await read(reader))


async def unpickled(message: Frame) -> Any:
    """Return the unpickled object of a message.

    A large object is unpickled in a thread, so that the event loop can go on with other tasks.
    """
    if len(message.pickled) < LARGE:
        return message.message
    return await asyncio.to_thread(pickle.loads, message.pickled)


async def read(reader: asyncio.StreamReader) -> Frame:
    """Return the next message. Raises `IncompleteReadError` or OSError at the end of the pipe."""
    num_pickled, num_raw = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    return Frame(await reader.readexactly(num_pickled), await reader.readexactly(num_raw))
