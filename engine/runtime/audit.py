"""The audit: finished answers are checked against plain decoding, in idle time.

Teacher-forced: the prompt and the answer run through the decoder once more, in a chain, into pages
of their own, and at each position of the answer the token is chosen anew from the same logit
rules, noise and counts. Drafts, trees, batches and cached prefixes play no part in that, so a
token they had changed comes to light as a mismatch.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from math import exp
from threading import Event

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.kv.page_table import PageTable
from engine.messages import Audited, SamplingParams
from engine.model.attention import Batch
from engine.model.decoder import PassCancelled
from engine.model.segment import Segment
from engine.runtime.choices import Logits, settle
from engine.runtime.load import Loaded
from engine.sampling.choose import choose
from engine.sampling.grammar.constraint import Constraint, to_tensor
from engine.sampling.logit_rules import TokenCounts, is_greedy, sampling_logprobs
from engine.sampling.noise import gumbel
from engine.sequences.sequence import Sequence

log = logging.getLogger(__name__)

MOST_WAITING = 64  # answers kept for a check; the oldest make room for newer ones
# How far rounding may move logits under fast numerics (nats, before temperature).
TOLERANCES = {torch.bfloat16: 0.25, torch.float32: 1e-3}


class Auditor:
    """Keeps a share of the finished answers and checks them one by one.

    One thread calls `offer` and `run`; `preempt` may come from any other.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._decoder = loaded.decoder
        self._cache = loaded.cache
        self._tolerance = TOLERANCES[loaded.decoder.embedding.weight.dtype]
        self._waiting: deque[Sequence] = deque(maxlen=MOST_WAITING)
        self._preempted = Event()

    @property
    def pending(self) -> bool:
        """Whether an answer waits for its check."""
        return bool(self._waiting)

    def offer(self, sequence: Sequence) -> None:
        """A choice has finished; it is kept for a check if the draw says so.

        The draw is a hash of the choice's name: the same in every run.
        """
        name = f"{sequence.request_id}/{sequence.choice}"
        drawn = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
        if drawn < self._loaded.audit * 2**64:
            self._waiting.append(sequence)

    def preempt(self) -> None:
        """A request came: the check at hand ends at the next layer border, to be tried again.

        Call it after the request can be seen by the thread that runs the checks. That thread looks
        for requests between two calls of `run`, so none is missed.
        """
        self._preempted.set()

    @torch.inference_mode()
    def run(self) -> Audited | None:
        """Check one answer, if there is a `pending` one; what is known of it is dropped then.

        None when it was preempted (it stays), when its rows do not fit into the free KV pages, or
        when weights could not be read (it is dropped).
        """
        sequence = self._waiting.popleft()
        try:
            audited = self._check(sequence)
        except PassCancelled:
            self._loaded.stream.seek()
            self._waiting.appendleft(sequence)
            return None
        except ModelError as error:
            self._loaded.stream.seek()
            log.warning("audit of %s dropped: %s", sequence.request_id, error)
            return None
        finally:
            self._preempted.clear()
        if audited is not None and audited.mismatches:
            log.warning(
                "audit of %s, choice %d: %d of %d tokens are not what plain decoding chooses",
                sequence.request_id,
                sequence.choice,
                audited.mismatches,
                audited.positions,
            )
        return audited

    def _check(self, sequence: Sequence) -> Audited | None:
        counts = TokenCounts(sequence.tokens[: sequence.num_prompt])
        constraint = sequence.request.constraint and sequence.request.constraint.copy()
        mismatches = 0
        for positions, is_long in _spans(sequence):
            table = PageTable()
            try:
                if not self._cache.reserve(table, positions.stop - 1):
                    return None
                for position, logits in self._walk(sequence, table, positions, is_long):
                    mismatches += not self._agrees(sequence, counts, constraint, position, logits)
                    counts.add(sequence.tokens[position])
                    if constraint is not None:
                        constraint.emit(sequence.tokens[position])
            finally:
                self._cache.close(table)
        return Audited(len(sequence.tokens) - sequence.num_prompt, mismatches)

    def _walk(
        self, sequence: Sequence, table: PageTable, positions: range, is_long: bool
    ) -> Iterator[tuple[int, Tensor]]:
        """The positions of the answer in order, each with the logits [V] of the row before it."""
        rows, most = positions.stop - 1, self._loaded.plan.max_rows
        for start in range(0, rows, most):
            stop = min(start + most, rows)
            hidden = self._forward(sequence, table, range(start, stop), is_long)
            with self._decoder.head() as head:
                logits = Logits(hidden, head)
                for row in range(max(positions.start - 1, start), stop):
                    if self._preempted.is_set():
                        raise PassCancelled
                    yield row + 1, logits.row(row - start)

    def _forward(self, sequence: Sequence, table: PageTable, rows: range, is_long: bool) -> Tensor:
        """Hidden states [>= rows, D] of a chain of the sequence's tokens."""
        segment = Segment(
            first=0,
            count=len(rows),
            start=rows.start,
            slots=self._cache.slots(table)[: rows.stop],
            positions=torch.arange(rows.start, rows.stop, device=self._decoder.device),
            mask=None,
            cancelled=self._preempted,
            is_long=is_long,
        )
        batch = Batch(self._cache.pool, (segment,), range(len(rows)), self._decoder.strict)
        return self._decoder.forward(sequence.tokens[rows.start : rows.stop], rows, batch)

    def _agrees(
        self,
        sequence: Sequence,
        counts: TokenCounts,
        constraint: Constraint | None,
        position: int,
        logits: Tensor,
    ) -> bool:
        """Whether the token at a position is the one these logits choose."""
        token, banned = sequence.tokens[position], sequence.banned(position)
        params, choice = sequence.params, sequence.choice
        allowed = None
        if constraint is not None:
            allowed, banned = to_tensor([constraint.allowed(banned)]), ()
        chosen = choose(
            logits, params, counts, position=position, choice=choice, banned=banned, allowed=allowed
        )
        settled = chosen
        if constraint is not None:
            settled = settle(sequence, chosen, logits, constraint, counts, position)
        if settled == token or self._decoder.strict:
            return settled == token
        if settled != chosen:
            return True  # the limit of tokens decided, which knows no near-ties
        if is_greedy(params):
            params = replace(params, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
        tolerance = self._tolerance / params.temperature
        # The rules that cut tokens off have borders, which rounding moves too.
        uncut = replace(params, top_k=0, top_p=1.0, min_p=0.0)
        warped = partial(
            sampling_logprobs, logits[None], counts=counts, banned=[banned], allowed=allowed
        )
        scores = warped(params=uncut)[0].double()
        if is_greedy(sequence.params):
            return bool(scores[token] + tolerance >= scores.max())
        surely, possibly = (
            scores >= _floor(scores, params, slack, warped) for slack in (-tolerance, tolerance)
        )
        tokens = torch.arange(len(scores), device=scores.device)
        noisy = scores + gumbel(params.seed, choice, position, tokens)
        best = noisy.masked_fill(~surely, -torch.inf).max()
        return bool(possibly[token] and noisy[token] + tolerance >= best)


def _spans(sequence: Sequence) -> Iterator[tuple[range, bool]]:
    """Positions of the answer, and whether their rows used the long rope frequencies.

    A sequence that crosses the border of a length-dependent rope has all its KV computed anew.
    """
    first, end = sequence.num_prompt, len(sequence.tokens)
    original = sequence.original_length
    border = end if original is None else min(max(original + 1, first), end)
    for positions, is_long in ((range(first, border), False), (range(border, end), True)):
        if positions:
            yield positions, is_long


def _floor(
    scores: Tensor, params: SamplingParams, slack: float, warped: Callable[..., Tensor]
) -> Tensor:
    """Return the lowest of `scores` [V] that top-k, top-p and min-p keep, less `slack` nats.

    `warped(params=...)` gives the logits [1, V] under other parameters.
    """
    moved = replace(
        params,
        # A share of the mass moves by at most half of what logits move by.
        top_p=min(max(params.top_p + slack / 2, 1e-6), 1.0) if params.top_p < 1 else 1.0,
        min_p=min(params.min_p * exp(-slack), 1.0),
    )
    kept = warped(params=moved)[0] > -torch.inf
    return scores[kept].min() - slack
