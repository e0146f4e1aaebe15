"""The durations of steps: where the time goes, what is learned from it, and what is reported."""

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from engine.messages import Failed, PassStats, Tokens
from engine.runtime.load import Loaded
from engine.runtime.passes import Pass
from engine.sequences.scheduler import Scheduler, Turn


class Clock:
    """A stopwatch for the steps of one engine, which run one after another."""

    def __init__(self, loaded: Loaded, scheduler: Scheduler) -> None:
        self._loaded = loaded
        self._scheduler = scheduler
        self._seconds: dict[str, float] = defaultdict(float)  # by phase, of this step
        self._start = 0.0
        self._before = loaded.stream.stats
        self._is_decoding = False

    def start(self, turns: Sequence[Turn]) -> None:
        """Start measuring a step with these turns."""
        self._seconds.clear()
        self._before = self._loaded.stream.stats
        self._is_decoding = any(turn.is_decoding for turn in turns)
        self._start = time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a `with` block, or of a decorated function, as a phase of the step.

        The phases are "draft", "verify" and "head", which is a part of "verify".
        """
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - began

    def finish(self, rows: Pass, events: Sequence[Tokens | Failed]) -> PassStats:
        """Update the expected pass times from the finished step, and return its figures.

        Args:
            events: the results of the step.
        """
        stats, before, cache = self._loaded.stream.stats, self._before, self._loaded.cache
        policy, draft_stats = self._loaded.drafting.policy, self._loaded.drafting.take_stats()
        draft, ahead = self._seconds["draft"], draft_stats.ahead_seconds
        seconds = time.perf_counter() - self._start - draft
        stall = stats.stall_seconds - before.stall_seconds
        compute = max(seconds - stall - ahead, 0.0)
        link = stats.busy_seconds - before.busy_seconds
        link_bytes = stats.bytes - before.bytes
        own = stats.ram.seconds - before.ram.seconds, stats.disk.seconds - before.disk.seconds
        num_rows, prompt_rows = (
            len(rows.tokens),
            sum(entry.num_before_tree for entry in rows.entries),
        )
        emitted = [event for event in events if isinstance(event, Tokens)]
        accepted = sum(len(event.ids) for event in emitted if not event.is_replayed)
        policy.passes.observe(num_rows, compute, link, rows.num_pairs)
        if not prompt_rows:
            policy.observe_cycle(len(rows.entries), accepted, draft + seconds)
        self._scheduler.prefill_budget.observe(
            seconds, with_prompt=prompt_rows > 0, decoding=self._is_decoding
        )
        return PassStats(
            rows=num_rows,
            sequences=len(rows.entries),
            accepted=accepted,
            draft_ms=draft * 1e3,
            pass_ms=seconds * 1e3,
            link_gbps=link_bytes / (draft + seconds) / 1e9,  # weights travel while drafting too
            free_pages=cache.num_free_pages + cache.num_withdrawn,
            waiting=self._scheduler.num_waiting,
            prompt_rows=prompt_rows,
            drafted_by=tuple(draft_stats.drafted.items()),
            accepted_by=tuple(draft_stats.accepted.items()),
            ahead_ms=ahead * 1e3,
            copy_stall_ms=stall * 1e3,
            host_ms=max(self._seconds["verify"] - self._seconds["head"], 0.0) * 1e3,
            link_bytes=link_bytes,
            link_ms=max(own) * 1e3,  # both links work at the same time
            undrafted=draft_stats.undrafted,
            states=cache.take_state_stats(),
        )
