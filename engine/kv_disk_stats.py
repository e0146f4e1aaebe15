"""The figures of the idle KV on disk, which the engine process sends to the front end."""

from dataclasses import dataclass


@dataclass(frozen=True)
class KVDiskStats:
    """The idle KV on disk, and what was read and written since the last message."""

    nbytes: int  # on disk, of all models
    hits: int  # prompts that began with KV from the disk
    tokens: int  # whose KV was read
    written: int  # bytes
    dropped: int  # pages and states that there was no room or no time to write
    damaged: int  # files that did not hold what their names say; they were removed
