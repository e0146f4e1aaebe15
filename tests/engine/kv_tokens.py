"""A small KV cache whose rows tell the token that they were stored for."""

import torch

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from tests.engine.models import prompt
from tests.engine.page_traffic import CPU


def new_cache(num_pages: int = 8, host_pages: int = 0) -> KVCache:
    return KVCache(PagePool(2, num_pages, 1, 4, torch.float32, CPU), host_pages=host_pages)


def store(cache: KVCache, table: PageTable, tokens: list[int]) -> None:
    """Write KV that tells the token, keep it and publish it, as a pass over a chain does."""
    rows = len(tokens) - table.length
    assert cache.reserve(table, rows)
    slots = cache.slots(table)[table.length : len(tokens)]
    values = torch.tensor(tokens[table.length :], dtype=torch.float32)
    for layer in range(2):
        cache.pool.write(
            layer,
            slots,
            values.view(-1, 1, 1).expand(-1, 1, 4),
            values.view(-1, 1, 1).expand(-1, 1, 4),
        )
    cache.keep(table, range(rows))
    cache.publish(table, tokens)


def stored(cache: KVCache, table: PageTable) -> list[int]:
    keys, values = cache.pool.read(1, cache.slots(table)[: table.length])
    assert torch.equal(keys, values)
    return keys[:, 0, 0].int().tolist()


def fill(cache: KVCache, seed: int, pages: int) -> None:
    """Another sequence comes, needs so many pages, and goes; none of them is indexed."""
    table = cache.open(prompt(9, seed))
    assert cache.reserve(table, pages * PAGE)
    cache.close(table)


def finished(cache: KVCache, tokens: list[int], salt: int = 0) -> None:
    """A sequence that ran and ended: its full pages are idle."""
    table = cache.open(tokens, salt)
    store(cache, table, tokens)
    cache.close(table)
