"""Small KV caches with a store on disk, whose folder is the cache folder of the test."""

from collections.abc import Sequence

import torch

from engine.kv.disk.block_file import file_bytes
from engine.kv.disk.folder import KVFolder
from engine.kv.disk.store import DiskStore
from engine.kv.disk_cache import DiskCache
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from tests.engine.kv_tokens import store_tokens
from tests.engine.page_traffic import CPU, DIM, HEADS, LAYERS

ROOM = 1 << 30
PAGE_BYTES = 2 * LAYERS * PAGE * HEADS * DIM * 4
FILE_BYTES = file_bytes(PAGE_BYTES)


def new_folder(limit: int = ROOM, identity: str = "one", model: str = "m") -> KVFolder:
    return KVFolder(model, identity, {"page": FILE_BYTES, "state": file_bytes(0)}, limit)


def disk_cache(
    num_pages: int = 8, host_pages: int = 0, limit: int = ROOM, identity: str = "one"
) -> DiskCache:
    """Return a cache over the folder of this identity, as after a start of the engine."""
    pool = PagePool(
        num_layers=LAYERS,
        num_pages=num_pages,
        num_kv_heads=HEADS,
        head_dim=DIM,
        dtype=torch.float32,
        device=CPU,
    )
    cache = DiskCache(pool, host_pages=host_pages)
    cache.use_disk(DiskStore(new_folder(limit, identity)))
    return cache


def store_of(cache: DiskCache) -> DiskStore:
    assert cache.disk is not None
    return cache.disk


def save_all(cache: DiskCache) -> None:
    """Write all that is not on the disk, as the loop of the engine process does when idle."""
    while cache.has_unsaved:
        store_of(cache).wait(10.0, lambda: cache.can_save)
        cache.save_next()
    store_of(cache).flush(10.0)


def read_all(cache: DiskCache) -> None:
    """Take what is read for all tables, until none waits for the disk."""
    while cache._reading:
        cache.wait_for_disk(10.0)
        cache.take_read(10.0)


def open_read(cache: DiskCache, tokens: Sequence[int], salt: int = 0) -> PageTable:
    """Open a sequence with room for all its tokens, and read what the disk has of it."""
    table = cache.open(tokens, salt)
    assert cache.reserve(table, len(tokens) - table.length)
    read_all(cache)
    return table


def write_and_end(tokens: list[int], num_pages: int = 8, limit: int = ROOM) -> None:
    """Store a prompt, and end the cache as an engine process ends."""
    cache = disk_cache(num_pages, limit=limit)
    table = cache.open(tokens)
    store_tokens(cache, table, tokens)
    cache.close(table, tokens)
    cache.release()
