"""The audit: it checks finished answers against plain decoding while no request runs.

The check is teacher-forced. The prompt and the answer run through the decoder once more as a chain,
with KV pages of their own. At each position of the answer, the token is chosen again with the same
logit rules, noise and counts. This uses no draft, tree or batch, and no KV that any request has
stored, so a token that one of them changed is found as a mismatch.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from math import exp
from threading import Event

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.kv.page_table import PageTable
from engine.log_lines import of_request
from engine.messages import Audited, SamplingParams
from engine.model.attention import Batch
from engine.model.borrowed import PassCancelled
from engine.model.segment import Segment
from engine.runtime.choices import Logits, ensure_closable
from engine.runtime.load import Loaded
from engine.sampling.choose import choose
from engine.sampling.grammar.constraint import Constraint, to_tensor
from engine.sampling.logit_rules import TokenCounts, is_greedy, sampling_logprobs
from engine.sampling.noise import gumbel
from engine.sampling.thinking import forced_tokens
from engine.sequences.sequence import TokenSequence

log = logging.getLogger(__name__)

MAX_WAITING = 64  # answers kept for a check; beyond that the oldest are dropped
# How far rounding may move logits under fast numerics (nats, before the temperature).
TOLERANCES = {torch.bfloat16: 0.25, torch.float16: 0.05, torch.float32: 1e-3}


class Auditor:
    """A queue of finished answers to check one by one; it takes a share of all answers.

    One thread calls `offer` and `run`. Any thread may call `preempt`.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._decoder = loaded.decoder
        self._cache = loaded.cache
        self._tolerance = TOLERANCES[loaded.decoder.embedding.weight.dtype]
        self._waiting: deque[TokenSequence] = deque(maxlen=MAX_WAITING)
        self._preempted = Event()

    @property
    def has_pending(self) -> bool:
        """Whether an answer is waiting to be checked."""
        return bool(self._waiting)

    def offer(self, sequence: TokenSequence) -> None:
        """Queue a finished choice for a check if it belongs to the share that is audited.

        A hash of the request's id and the choice's number decides, so it is the same in every run.
        """
        name = f"{sequence.request_id}/{sequence.choice}"
        drawn = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
        if drawn < self._loaded.audit * 2**64:
            self._waiting.append(sequence)

    def preempt(self) -> None:
        """End the running check before its next layer, because a request has arrived.

        The check is repeated later. Queue the request before calling this: the thread that runs the
        checks looks for requests between two calls of `run`, so it misses none.
        """
        self._preempted.set()

    @torch.inference_mode()
    def run(self) -> Audited | None:
        """Check the oldest waiting answer and return the result. There must be one.

        Return None if there is no result. If the check was preempted, the answer stays in the
        queue. If its rows do not fit into the free KV pages, memory ran out, or weights could not
        be read, it is dropped.
        """
        sequence = self._waiting.popleft()
        try:
            audited = self._check(sequence)
        except PassCancelled:
            self._loaded.stream.seek()
            self._waiting.appendleft(sequence)
            return None
        except (ModelError, torch.OutOfMemoryError) as error:
            self._loaded.stream.seek()
            http_id = sequence.request.message.http_id
            log.warning(
                "The audit of %s is dropped: %s",
                sequence.request_id,
                error,
                extra=of_request(http_id),
            )
            return None
        finally:
            self._preempted.clear()
        if audited is not None and audited.mismatches:
            log.warning(
                "Audit of %s, choice %d: plain decoding chooses %d of %d tokens differently",
                sequence.request_id,
                sequence.choice,
                audited.mismatches,
                audited.positions,
                extra=of_request(sequence.request.message.http_id),
            )
        return audited

    def _check(self, sequence: TokenSequence) -> Audited | None:
        """Return the number of mismatches of an answer; None if there are too few free pages."""
        counts = TokenCounts(sequence.tokens[: sequence.num_prompt])
        constraint = sequence.request.constraint and sequence.request.constraint.copy()
        thinking = sequence.request.thinking
        mismatches = 0
        for positions, is_long in _spans(sequence):
            table = PageTable()
            try:
                if not self._cache.reserve(table, positions.stop - 1):
                    return None
                for position, logits in self._logits_by_position(
                    sequence, table, positions, is_long
                ):
                    token = sequence.tokens[position]
                    forced = forced_tokens(thinking, constraint)[:1]
                    mismatches += not self._matches(
                        sequence, counts, constraint, position, logits, forced
                    )
                    counts.add(token)
                    if thinking is not None:
                        thinking = thinking.after(token)
                    if constraint is not None:
                        constraint.emit(token)
            finally:
                self._cache.close(table)
        return Audited(len(sequence.tokens) - sequence.num_prompt, mismatches)

    def _logits_by_position(
        self, sequence: TokenSequence, table: PageTable, positions: range, is_long: bool
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the positions of the answer in order, each with the logits [V] that choose it.

        Args:
            table: pages with room for all rows before the last position.
            positions: the positions of the answer, all on one side of the original length.
            is_long: whether the rows use the long rope frequencies.

        Raises `PassCancelled` if the check is preempted.
        """
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

    def _forward(
        self, sequence: TokenSequence, table: PageTable, rows: range, is_long: bool
    ) -> Tensor:
        """Run some tokens of the sequence as a chain; return hidden states [>= rows, D]."""
        segment = Segment(
            first=0,
            count=len(rows),
            start=rows.start,
            slots=self._cache.slots(table)[: rows.stop],
            positions=torch.arange(rows.start, rows.stop, device=self._decoder.device),
            mask=None,
            cancelled=self._preempted,
            is_long=is_long,
            state=table.state,
        )
        batch = Batch(self._cache.pool, (segment,), range(len(rows)), self._decoder.strict)
        hidden = self._decoder.forward(sequence.tokens[rows.start : rows.stop], rows, batch)
        self._cache.append_rows(table, range(len(rows)))
        return hidden

    def _matches(
        self,
        sequence: TokenSequence,
        counts: TokenCounts,
        constraint: Constraint | None,
        position: int,
        logits: Tensor,
        forced: Sequence[int] = (),
    ) -> bool:
        """Return whether the token at a position is the one that these logits [V] choose.

        Under fast numerics, return True as well if rounding explains the difference.

        Args:
            counts, constraint: the state after all tokens before the position.
            forced: the token that the thinking budget forces here; empty if there is none.
        """
        token, banned = sequence.tokens[position], sequence.banned(position)
        params, choice = sequence.params, sequence.choice
        allowed = None
        if constraint is not None:
            allowed, banned = to_tensor([constraint.allowed(banned)]), ()
        chosen = choose(
            logits, params, counts, position=position, choice=choice, banned=banned, allowed=allowed
        )
        emitted = chosen = forced[0] if forced else chosen
        if constraint is not None:
            emitted = ensure_closable(sequence, chosen, logits, constraint, counts, position)
        if emitted == token or self._decoder.strict:
            return emitted == token
        if emitted != chosen:
            return True  # the token limit decided this token, whatever the logits are
        if forced:
            return False
        if is_greedy(params):
            params = replace(params, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0)
        tolerance = self._tolerance / params.temperature
        # Rounding also moves the thresholds of top-k, top-p and min-p.
        uncut = replace(params, top_k=0, top_p=1.0, min_p=0.0)
        warp = partial(
            sampling_logprobs, logits[None], counts=counts, banned=[banned], allowed=allowed
        )
        scores = warp(params=uncut)[0].double()
        if is_greedy(sequence.params):
            return bool(scores[token] + tolerance >= scores.max())
        surely, possibly = (
            scores >= _lowest_kept(scores, params, slack, warp) for slack in (-tolerance, tolerance)
        )
        tokens = torch.arange(len(scores), device=scores.device)
        noisy = scores + gumbel(params.seed, choice, position, tokens)
        best = noisy.masked_fill(~surely, -torch.inf).max()
        return bool(possibly[token] and noisy[token] + tolerance >= best)


def _spans(sequence: TokenSequence) -> Iterator[tuple[range, bool]]:
    """Yield ranges of the answer's positions, and whether they used the long rope frequencies.

    There are two ranges if the answer grew beyond the original length of a length-dependent rope:
    from there on all KV of the sequence was computed again.
    """
    first, end = sequence.num_prompt, len(sequence.tokens)
    original = sequence.original_length
    first_long = end if original is None else min(max(original + 1, first), end)
    for positions, is_long in ((range(first, first_long), False), (range(first_long, end), True)):
        if positions:
            yield positions, is_long


def _lowest_kept(
    scores: Tensor, params: SamplingParams, slack: float, warp: Callable[..., Tensor]
) -> Tensor:
    """Return the lowest of `scores` [V] that top-k, top-p and min-p keep, less `slack` nats.

    Args:
        warp: returns log-probabilities [1, V] for given sampling parameters.
    """
    moved = replace(
        params,
        # If logits move by x nats, a share of the probability mass moves by at most x / 2.
        top_p=min(max(params.top_p + slack / 2, 1e-6), 1.0) if params.top_p < 1 else 1.0,
        min_p=min(params.min_p * exp(-slack), 1.0),
    )
    kept = warp(params=moved)[0] > -torch.inf
    return scores[kept].min() - slack
