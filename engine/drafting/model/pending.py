"""Pending tokens of a draft model with recurrent layers: those that its states do not include.

Few of them run as nodes before the root (`Scratch.pending`). More, such as a prompt, run before the
step as a chain of their own, which changes the states at once and takes no memory for each row.
"""

import torch

from engine.drafting.model.draft_cache import DraftCache
from engine.kv.page_pool import PAGE
from engine.kv.page_table import PageTable
from engine.model.attention import Batch
from engine.model.borrowed import PassCancelled
from engine.model.decoder import Decoder
from engine.model.segment import Segment, upload_segments
from engine.sequences.sequence import TokenSequence

PROMPT_TILE = 512  # rows of a long prompt that run through a layer at a time
MOST_AS_NODES = PAGE  # pending tokens that run as nodes: what a row takes grows with their number


def run_long(decoder: Decoder, caches: DraftCache, sequence: TokenSequence) -> int:
    """Run pending tokens that are too many to run as nodes, and return how many were run.

    They are all tokens but the last. The states after a prompt's last pages are stored.
    """
    table, end = caches.prefix(sequence), len(sequence.tokens) - 1
    if table is None or end - table.length <= MOST_AS_NODES:
        return 0
    start = table.length
    while table.length < end and not sequence.is_cancelled:
        rows = min(PROMPT_TILE, end - table.length)
        try:
            _run(decoder, caches, sequence, table, rows)
        except PassCancelled:  # the states are of no use; they are freed with the sequence
            break
    return table.length - start


def pending_slots(sequence: TokenSequence, table: PageTable) -> list[int]:
    """Return the slots for the KV of all tokens between the prefix and the last token."""
    places = range(table.length, len(sequence.tokens) - 1)
    return [table.pages[place // PAGE] * PAGE + place % PAGE for place in places]


def _run(
    decoder: Decoder, caches: DraftCache, sequence: TokenSequence, table: PageTable, rows: int
) -> None:
    """Run the next tokens after the prefix, and add them to it unless the client has left."""
    cache, tokens, start = caches.cache, sequence.tokens, table.length
    cache.capture_states(table, rows, end=len(tokens))
    positions = range(start, start + rows)
    segment = Segment(
        first=0,
        count=rows,
        start=start,
        slots=torch.tensor([], dtype=torch.int64),  # all of them are on the device
        positions=torch.tensor(positions),
        mask=None,
        cancelled=sequence.cancelled,
        is_long=decoder.is_long(len(tokens)),
        state=table.state,
    )
    slots = cache.slots(table)[: positions.stop]
    placed, _ = upload_segments([segment], [], before=[slots], device=decoder.device)
    batch = Batch(cache.pool, placed, range(rows), decoder.strict)
    decoder.forward(tokens[start : positions.stop], positions, batch)
    if not sequence.is_cancelled:  # else tiles may have been skipped
        caches.keep_pending(sequence, rows)
