"""The file of one block: a header that names the block exactly, and its bytes with a checksum.

A reader knows every byte of the header but the checksum, because it knows which tokens it asks for.
So a file of another model, another prefix or another layout is noticed as well as one that was
damaged, was cut off, or never reached the disk.
"""

import os
import secrets
import struct
import zlib
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from engine.cache_files import REPLACING
from engine.kv.disk.block import KINDS, Block

HEADER_BYTES = 1024  # room for the tokens of a page, 8 bytes each
_MAGIC = b"understudy-kv-1\n"
_FIXED = struct.Struct("<16s16s16sIIQ")  # magic, key, parent, kind, number, bytes of the block
_CHECKSUM = struct.Struct("<I")


def file_bytes(payload_bytes: int) -> int:
    """Return the size in bytes of the file of a block with `payload_bytes` bytes of KV."""
    return HEADER_BYTES + payload_bytes


class DamagedBlock(Exception):
    """The file does not hold the block that its name says; the message says what is wrong."""


def write_block(folder: Path, key: bytes, block: Block, payload: Tensor) -> int:
    """Write a block under its name in one step that happens or does not; return the file's bytes.

    Raises OSError.

    Args:
        key: 16 bytes that name all that the values of a block depend on, beside its tokens.
        payload: uint8, contiguous on the host.
    """
    memory = payload.numpy().data
    header = _known_header(key, block, len(memory))
    header += _CHECKSUM.pack(zlib.crc32(memory))
    path = folder / str(block.name)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}{REPLACING}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            _write(descriptor, memoryview(header.ljust(HEADER_BYTES, b"\0")))
            _write(descriptor, memory)
        finally:
            os.close(descriptor)
        os.rename(new, path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    return file_bytes(len(memory))


def read_block(folder: Path, key: bytes, block: Block, payload: Tensor) -> None:
    """Fill `payload` (uint8) with a block. Raises OSError, and `DamagedBlock`."""
    memory = payload.numpy().data
    path = folder / str(block.name)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        if size != file_bytes(len(memory)):
            raise DamagedBlock(f"has {size} bytes, expected {file_bytes(len(memory))}")
        header = bytearray(HEADER_BYTES)
        _read(descriptor, memoryview(header), 0)
        known = _known_header(key, block, len(memory))
        if header[: len(known)] != known:
            raise DamagedBlock("is of other tokens or of another model")
        _read(descriptor, memory, HEADER_BYTES)
        if _CHECKSUM.unpack_from(header, len(known))[0] != zlib.crc32(memory):
            raise DamagedBlock("has a wrong checksum")
        with suppress(OSError):  # of another user, or on a disk that is read only
            os.utime(descriptor)  # when it was last used
    finally:
        os.close(descriptor)


def _known_header(key: bytes, block: Block, nbytes: int) -> bytes:
    """Return the header up to the checksum."""
    kind = KINDS.index(block.kind)
    fixed = _FIXED.pack(_MAGIC, key, block.parent, kind, block.number, nbytes)
    return fixed + struct.pack(f"<I{len(block.tokens)}q", len(block.tokens), *block.tokens)


def _write(descriptor: int, memory: memoryview) -> None:
    done = 0
    while done < len(memory):
        done += os.write(descriptor, memory[done:])


def _read(descriptor: int, memory: memoryview, offset: int) -> None:
    done = 0
    while done < len(memory):
        count = os.preadv(descriptor, [memory[done:]], offset + done)
        if count == 0:
            raise DamagedBlock("ends early")
        done += count
