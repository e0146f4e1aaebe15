"""The front end's end of the pipe: it reads without blocking, and writes in order from a thread."""

import pickle
import select
import socket
import struct
from collections.abc import Iterator
from multiprocessing.connection import Connection
from os import dup
from queue import SimpleQueue
from threading import Thread
from typing import Any

_CHUNK = 1 << 18  # bytes read from the socket at a time
_LENGTH = struct.Struct("!i")  # as multiprocessing.connection: four bytes, or -1 and eight more
_LONG_LENGTH = struct.Struct("!Q")


class PipeReader:
    """A reader that never blocks, whereas `Connection.recv` waits for the rest of a message.

    `at_end` is true once the other end is closed, or its process has ended.
    """

    def __init__(self, connection: Connection) -> None:
        self._socket = socket.socket(fileno=dup(connection.fileno()))
        self._buffer = bytearray()
        self.at_end = False

    def fileno(self) -> int:
        """Return the file descriptor that an event loop can watch."""
        return self._socket.fileno()

    def read(self) -> Iterator[Any]:
        """Yield the messages that have arrived whole, in order."""
        self._fill()
        while (frame := self._take_frame()) is not None:
            yield pickle.loads(frame)

    def close(self) -> None:
        """Close the reader's copy of the descriptor."""
        self._socket.close()

    def _fill(self) -> None:
        while not self.at_end:
            try:
                chunk = self._socket.recv(_CHUNK, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except ConnectionError:
                chunk = b""
            self._buffer += chunk
            self.at_end = not chunk

    def _take_frame(self) -> bytes | None:
        start = _LENGTH.size
        if len(self._buffer) < start:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length == -1:
            if len(self._buffer) < start + _LONG_LENGTH.size:
                return None
            (length,) = _LONG_LENGTH.unpack_from(self._buffer, start)
            start += _LONG_LENGTH.size
        if len(self._buffer) < start + length:
            return None
        frame = bytes(self._buffer[start : start + length])
        del self._buffer[: start + length]
        return frame


class PipeWriter:
    """A writer that sends messages in order from its own thread, so that callers never wait.

    Messages are dropped once the other end is closed.

    `Connection.send` cannot be used: an event loop that watches the pipe (libuv's) makes it
    non-blocking, and a message larger than the pipe's buffer would be cut off.
    """

    def __init__(self, connection: Connection) -> None:
        self._socket = socket.socket(fileno=dup(connection.fileno()))
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._thread = Thread(target=self._write, name="pipe writer", daemon=True)
        self._thread.start()

    def send(self, message: Any) -> None:
        """Queue a message for sending."""
        self._queue.put(message)

    def close(self) -> None:
        """End the thread. The other end must be closed: otherwise the thread may wait for room."""
        self._queue.put(None)
        self._thread.join()
        self._socket.close()

    def _write(self) -> None:
        while (message := self._queue.get()) is not None:
            payload = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            try:
                self._send_all(_header(len(payload)))
                self._send_all(payload)
            except OSError:
                return

    def _send_all(self, data: bytes) -> None:
        room = select.poll()
        room.register(self._socket, select.POLLOUT)
        rest = memoryview(data)
        while rest:
            room.poll()
            try:
                rest = rest[self._socket.send(rest, socket.MSG_DONTWAIT) :]
            except BlockingIOError:
                continue


def _header(length: int) -> bytes:
    if length < 2**31:
        return _LENGTH.pack(length)
    return _LENGTH.pack(-1) + _LONG_LENGTH.pack(length)
