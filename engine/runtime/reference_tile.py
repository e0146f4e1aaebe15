"""A hash of computed bits: two engines with the same hash round in the same way.

One fixed tile of 64 rows runs through the first layer and the head when a model is loaded. Its bits
depend on the weights, the type to compute in, the device and its libraries, but not on where the
weights are kept or on the draft.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from threading import Event

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.kv.cache import KVCache
from engine.kv.page_table import PageTable
from engine.model.attention import Batch
from engine.model.decoder import Decoder
from engine.model.resumable import OutOfTime, ResumableForward
from engine.model.segment import Segment
from engine.spec import TILE
from engine.streaming.ring import LayerStream


def reference_hash(decoder: Decoder, stream: LayerStream, cache: KVCache) -> str:
    """Return a hash of the logits of a fixed tile that ran through the first layer and the head.

    Only these weights are read. Afterwards the first unit is next, the figures of the stream begin
    at zero, and the cache is empty.

    Args:
        decoder: the model, whose weights come from `stream`.
        cache: nothing else uses it meanwhile.

    Raises `ModelError` if weights cannot be read or the cache is too small.
    """
    table = PageTable()
    if not cache.reserve(table, TILE):
        raise ModelError("the KV cache has no room for a tile. Raise memory.device")
    try:
        with nullcontext() if decoder.strict else _one_thread():
            hidden = _first_layer(decoder, _batch(decoder, cache, table))
            stream.seek(decoder.head_unit)
            with decoder.head() as head:
                logits = head(hidden)
    finally:
        cache.close(table)
        stream.seek()
        stream.reset_stats()
    bits = logits.contiguous().view(torch.uint8).cpu().numpy()
    return hashlib.sha256(bits.tobytes()).hexdigest()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute with one thread in the block.

    Under fast numerics bits may depend on the number of threads, which is chosen anew at each load
    by measuring.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _batch(decoder: Decoder, cache: KVCache, table: PageTable) -> Batch:
    """Return a batch of one sequence of 64 tokens, whose forward ends after the first layer."""
    segment = Segment(
        first=0,
        count=TILE,
        start=0,
        slots=cache.slots(table)[:TILE],
        positions=torch.arange(TILE, device=decoder.device),
        mask=None,
        cancelled=Event(),
        state=table.state,
    )
    first_layer = ResumableForward(max_layers=1)
    return Batch(cache.pool, (segment,), range(TILE), decoder.strict, resumable=first_layer)


def _first_layer(decoder: Decoder, batch: Batch) -> Tensor:
    """Return the hidden states [64, D] of the first layer, for tokens from all the vocabulary."""
    size = decoder.embedding.num_embeddings
    tokens = [row * size // TILE for row in range(TILE)]
    try:
        return decoder.forward(tokens, range(TILE), batch)  # a model of a single layer
    except OutOfTime:
        assert batch.resumable is not None and batch.resumable.hidden is not None
        hidden = batch.resumable.hidden
        return hidden.reshape(-1, hidden.shape[-1])[:TILE]  # some models have several states a row
