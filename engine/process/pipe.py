"""The front end's end of the pipe: reads without blocking, writes in order from a thread."""

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

_CHUNK = 1 << 18  # bytes taken from the socket at a time
_LENGTH = struct.Struct("!i")  # multiprocessing.connection: four bytes, or -1 and eight more
_LONG_LENGTH = struct.Struct("!Q")


class PipeReader:
    """Takes what has arrived, never more: `Connection.recv` would wait for the rest of a message.

    `at_end` is true once the other end is closed, by intent or by death.
    """

    def __init__(self, connection: Connection) -> None:
        self._socket = socket.socket(fileno=dup(connection.fileno()))
        self._buffer = bytearray()
        self.at_end = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> Iterator[Any]:
        """The messages that are complete by now, in order."""
        self._fill()
        while (frame := self._take_frame()) is not None:
            yield pickle.loads(frame)

    def close(self) -> None:
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
    """Sends messages in order from its own thread, so that a full pipe never holds up the caller.

    Once the other end is gone messages are dropped: whoever waits for it learns of the death.

    `Connection.send` would not do: an event loop that watches the pipe (libuv's) makes it
    non-blocking, and a message larger than the pipe's buffer would be cut off.
    """

    def __init__(self, connection: Connection) -> None:
        self._socket = socket.socket(fileno=dup(connection.fileno()))
        self._queue: SimpleQueue[Any] = SimpleQueue()
        self._thread = Thread(target=self._write, name="pipe writer", daemon=True)
        self._thread.start()

    def send(self, message: Any) -> None:
        self._queue.put(message)

    def close(self) -> None:
        """End the thread. Only once the other end is gone: until then it may wait for room."""
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
