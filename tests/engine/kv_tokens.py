"""A small KV cache for tests, in which the KV of a token is the token id itself."""

import torch

from engine.kv.cache import KVCache
from engine.kv.page_pool import PAGE, PagePool
from engine.kv.page_table import PageTable
from tests.engine.models import prompt
from tests.engine.page_traffic import CPU


def new_cache(num_pages: int = 8, host_pages: int = 0) -> KVCache:
    pool = PagePool(
        num_layers=2,
        num_pages=num_pages,
        num_kv_heads=1,
        head_dim=4,
        dtype=torch.float32,
        device=CPU,
    )
    return KVCache(pool, host_pages=host_pages)


def store_tokens(cache: KVCache, table: PageTable, tokens: list[int]) -> None:
    """Write token ids as KV, keep the rows and publish them, as a pass over a prompt does."""
    rows = len(tokens) - table.length
    assert cache.reserve(table, rows)
    slots = cache.slots(table)[table.length : len(tokens)]
    values = torch.tensor(tokens[table.length :], dtype=torch.float32)
    width = cache.pool.keys.shape[-1]
    keys = values.view(-1, 1, 1).expand(-1, 1, width)
    for layer in range(2):
        cache.pool.write(layer, slots, keys, keys)
    cache.append_rows(table, range(rows))
    cache.publish(table, tokens)


def stored_tokens(cache: KVCache, table: PageTable) -> list[int]:
    """Return the tokens whose KV the prefix of a table holds."""
    keys, values = cache.pool.read(1, cache.slots(table)[: table.length])
    assert torch.equal(keys, values)
    return keys[:, 0, 0].int().tolist()


def fill_pages(cache: KVCache, seed: int, pages: int) -> None:
    """Reserve this many pages for another sequence and free them without indexing any."""
    table = cache.open(prompt(9, seed))
    assert cache.reserve(table, pages * PAGE)
    cache.close(table)


def run_and_close(cache: KVCache, tokens: list[int], salt: int = 0) -> None:
    """Run a sequence and close it, so that its full pages are idle."""
    table = cache.open(tokens, salt)
    store_tokens(cache, table, tokens)
    cache.close(table)
