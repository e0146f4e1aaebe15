"""Idle KV on the disk, of which a new process uses what it finds."""

import logging

from engine.kv.disk.block_file import file_bytes
from engine.kv.disk.folder import KVFolder
from engine.kv.disk.store import DiskStore
from engine.kv.disk_cache import DiskCache
from engine.model.guard import code_digest
from engine.planning.footprint import size_text
from engine.spec import ModelSpec

log = logging.getLogger(__name__)


def keep_on_disk(cache: DiskCache, spec: ModelSpec, fingerprint: str) -> None:
    """Let a cache keep idle KV on the disk, if the specification gives it room there.

    What is found is used only if this engine would go on with an answer of the one that wrote it,
    and was made by the same code.
    """
    if not (spec.memory.kv_disk and spec.prefix_cache):
        return
    memory = cache.pool.memory
    parts = [fingerprint, code_digest(), memory.dtype, [*memory.shape[::2], memory.shape[3]]]
    identity = "\n".join(map(str, [*parts, cache.pool.page_bytes, cache.state_bytes]))
    folder = KVFolder(
        spec.id,
        identity,
        {"page": file_bytes(cache.pool.page_bytes), "state": file_bytes(cache.state_bytes)},
        spec.memory.kv_disk,
    )
    cache.use_disk(DiskStore(folder))
    size, most = size_text(folder.nbytes), size_text(spec.memory.kv_disk)
    log.info("%s: KV of prompts and answers on disk: %s of %s", spec.id, size, most)
