"""The target's logits after some tokens, to which a draft's are compared."""

from collections.abc import Sequence
from threading import Event

import torch
from torch import Tensor

from engine.kv.page_table import PageTable
from engine.model.attention import Batch
from engine.model.segment import Segment
from engine.runtime.engine import Engine


@torch.inference_mode()
def target_logits(engine: Engine, tokens: Sequence[int]) -> Tensor:
    """Return the target's logits [V] after some tokens, which run as one prompt."""
    cache, decoder, table = engine._cache, engine._decoder, PageTable()
    assert cache.reserve(table, len(tokens))
    segment = Segment(
        first=0,
        count=len(tokens),
        start=0,
        slots=cache.slots(table)[: len(tokens)],
        positions=torch.arange(len(tokens)),
        mask=None,
        cancelled=Event(),
        state=table.state,
    )
    batch = Batch(cache.pool, (segment,), range(len(tokens)), decoder.strict)
    hidden = decoder.forward(tokens, range(len(tokens)), batch)
    cache.close(table)
    with decoder.head() as head:
        return head(hidden[len(tokens) - 1 : len(tokens)])[0].clone()
