"""The engine's step: schedule, draft, run the model, verify, emit.

One pass serves every running sequence, and weights are streamed only during a pass. This is
SpecExec (arXiv 2406.02532) and SubSpec (arXiv 2509.18344) for many sequences together: each
sequence has one draft tree, all trees and prompts run in one forward, and each tree is verified
against the tokens that the target itself chooses.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from engine.drafting.tree import DraftTree
from engine.kv.disk.saves import IdleSaves
from engine.messages import Generate, ModelInfo, PassStats, ReportProgress
from engine.model.borrowed import PassCancelled
from engine.runtime.audit import Auditor
from engine.runtime.choices import Logits
from engine.runtime.clock import Clock
from engine.runtime.load import Loaded, load
from engine.runtime.passes import Entry, Pass, assemble
from engine.runtime.replay import SLICE_SECONDS
from engine.runtime.requests import Events, Requests
from engine.runtime.residence import Residence
from engine.runtime.scoring import score_prompt
from engine.runtime.shortage import MemoryShortage
from engine.runtime.traces import PassTraces
from engine.runtime.verify import emit_accepted
from engine.sampling.grammar.constraint import Constraint
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sequences.scheduler import Scheduler, Turn
from engine.spec import ModelSpec


class Engine:
    """A loaded model and the requests that it serves. One thread calls `step`."""

    def __init__(
        self, loaded: Loaded, on_prompt: Callable[[str, int], None] = lambda request_id, done: None
    ) -> None:
        self.info: ModelInfo = loaded.info
        self.last_pass: PassStats | None = None
        self._loaded = loaded
        self._decoder = loaded.decoder
        self._cache = loaded.cache
        self._drafting = loaded.drafting
        self._scheduler = Scheduler(
            loaded.cache,
            max_sequences=loaded.plan.max_sequences,
            max_rows=loaded.plan.max_rows,
            scratch_rows=loaded.scratch_rows,
            draft_rows=loaded.draft_rows,
            release=loaded.drafting.release,
            reclaim=loaded.drafting.reclaim,
            num_reclaimable=loaded.drafting.num_pages,
            passes=loaded.drafting.policy.passes,
        )
        self.auditor = Auditor(loaded)
        self.rechecks = loaded.rechecks
        self.residence = Residence(loaded, self._scheduler.pause_youngest)
        self.saves = IdleSaves(loaded.cache)
        self._requests = Requests(loaded, self._scheduler, self.auditor, on_prompt)
        self._shortage = MemoryShortage(loaded, self._scheduler, self._requests)
        self.clock = Clock(loaded, self._scheduler)
        self._traces = PassTraces()
        # On an asynchronous device the host would wait for each choice (see `choose_tree`).
        self._at_once = loaded.device.is_asynchronous

    @classmethod
    def load(
        cls,
        spec: ModelSpec,
        progress: ReportProgress,
        on_pass_progress: Callable[[], None] = lambda: None,
        on_prompt: Callable[[str, int], None] = lambda request_id, done: None,
    ) -> "Engine":
        """Load a model and return its engine. The loading thread must also call `step`.

        Args:
            progress: called with the progress of loading.
            on_pass_progress: called before each unit and each tile of a pass.
            on_prompt: called before passes that run a prompt; see `Requests`.

        Raises `ModelError` if the model cannot be served.
        """
        with torch.inference_mode():
            return cls(load(spec, progress, on_pass_progress), on_prompt)

    def close(self) -> None:
        """End the threads of the weight stream and unpin host memory."""
        self._loaded.stream.close()
        self._loaded.cache.release()

    def add(self, message: Generate) -> None:
        """Compile a request's grammar and queue the request, as `compile` and `queue` do."""
        self.queue(message, self.compile(message))

    def compile(self, message: Generate) -> Constraint | None:
        """Return the compiled grammar of a request, or None if it has none.

        It may take a second, without holding the GIL. One other thread may call this during `step`.
        Raises `RequestError` if the grammar cannot be used.
        """
        return self._loaded.constraint(message.params)

    def queue(self, message: Generate, constraint: Constraint | None) -> None:
        """Queue a request with its compiled grammar.

        Raises `RequestError` if the request can never be served.
        """
        self._requests.add(message, constraint)

    def abort(self, request_id: str) -> None:
        """Cancel a request whose client has left. The thread that reads the pipe calls this."""
        self._requests.abort(request_id)

    def has_work(self) -> bool:
        """Return True if a sequence waits, is replayed or runs, or its end is not reported."""
        has_sequences = bool(self._scheduler.running) or self._scheduler.num_waiting > 0
        return has_sequences or self._requests.has_own_work

    @torch.inference_mode()
    def step(self) -> Events:
        """Run one pass and return its results; the list is empty if no sequence could run.

        Where the device's memory runs out, sequences that got no token take part in the next pass.
        """
        self._requests.drop_cancelled()
        self._requests.replay(SLICE_SECONDS)
        events = self._requests.take_ended()
        self._take_read(SLICE_SECONDS)
        turns = self._scheduler.schedule()
        self._requests.report_prompts(turns)
        if not turns:
            self._cache.wait_for_disk(SLICE_SECONDS)
            return events
        sequences = [turn.sequence for turn in turns]
        with self._shortage.noted(), self._requests.fail_pass_on_error(sequences, events):
            self._run(turns, events)
        events += self._shortage.recover(turns, events)
        self.rechecks.postpone()
        self.residence.note_pass()
        return events

    def _run(self, turns: Sequence[Turn], events: Events) -> None:
        """Run a pass of these turns, and append its results to `events`."""
        self.clock.start(turns)
        with self.clock.phase("draft"):
            trees = self._draft(turns)
        rows = assemble(turns, trees, self._cache, self._decoder, on_wait=self._use_wait)
        with self._drafting.side_stream.during_pass():
            hidden = self._decoder.forward(rows.tokens, rows.positions, rows.batch)
            with self.clock.phase("verify"):
                self._verify(rows, hidden, events)
        self.last_pass = self.clock.finish(rows, events)
        self._traces.attach(rows, self.last_pass, events)

    def _use_wait(self, seconds: float) -> bool:
        """Use up to `seconds` in which a pass waits for weights. Return True if work was done."""
        if seconds > 0 and self._requests.replay(min(seconds, SLICE_SECONDS)):
            return True
        if seconds > 0 and self._take_read(min(seconds, SLICE_SECONDS)):
            return True
        return self._drafting.draft_ahead(seconds)

    def _take_read(self, seconds: float) -> bool:
        """Store what was read from the disk, for up to `seconds`. Return whether anything was."""
        has_taken = self._cache.take_read(seconds)
        if has_taken:
            self._decoder.on_pass_progress()
        return has_taken

    def _draft(self, turns: Sequence[Turn]) -> list[DraftTree | None]:
        """Return a tree for each turn.

        It is a root alone if the turn ends a prompt or has no room for more, and None if the prompt
        goes on in a later pass.
        """
        drafting = [turn for turn in turns if turn.is_decoding and turn.max_tree_rows > 1]
        proposed = self._drafting.propose(
            [turn.sequence for turn in drafting],
            [turn.max_tree_rows for turn in drafting],
            fixed_rows=sum(turn.num_pending for turn in turns if not turn.is_decoding),
            max_rows=self._scheduler.allowed_rows,
        )
        trees = {t: DraftTree.root(t.sequence.tokens[-1]) for t in turns if t.max_tree_rows == 1}
        trees |= dict(zip(drafting, proposed, strict=True))
        return [trees.get(turn) for turn in turns]

    def _verify(self, rows: Pass, hidden: Tensor, events: Events) -> None:
        """Verify every tree with the target's logits, and emit the accepted tokens."""
        if not rows.batch.has_live_rows():
            raise PassCancelled
        with self._logits(rows, hidden) as logits:
            for entry in rows.entries:
                with self._shortage.noted():  # others may have got their tokens already
                    self._verify_entry(entry, logits, events)

    def _verify_entry(self, entry: Entry, logits: Logits, events: Events) -> None:
        """Score and keep the prompt rows of a sequence, and emit what is accepted of its tree."""
        sequence = entry.sequence
        with self._requests.fail_request_on_error(sequence, events):
            score_prompt(entry, logits, self._decoder.on_pass_progress)
        if sequence.is_cancelled:
            return  # its rows may not have been computed
        sequence.count_pass()
        if entry.tree is None:
            self._keep(entry, [])
            return
        with self._requests.fail_request_on_error(sequence, events):
            events += self._emit(entry, entry.tree, logits)

    @contextmanager
    def _logits(self, rows: Pass, hidden: Tensor) -> Iterator[Logits]:
        """Borrow the head's weights and yield the logits of the pass, which the drafts see too."""

        def observe(first: int, block: Matrix) -> None:
            self._drafting.observe(rows.tokens[first : first + len(block.values)], block)

        with self._decoder.head(self._use_wait) as head:
            self._drafting.finish_ahead()  # drafting ahead ends when all weights have arrived
            yield Logits(hidden, self.clock.phase("head")(head), observe)

    def _emit(self, entry: Entry, tree: DraftTree, logits: Logits) -> Events:
        """Emit the accepted tokens of a tree. After a prompt, start the request's other choices."""
        sequence = entry.sequence
        is_first = sequence.choice == 0 and sequence.is_beginning
        accepted = emit_accepted(sequence, tree, entry.root, logits, at_once=self._at_once)
        self._keep(entry, accepted)
        events: Events = [*sequence.take_reports()]
        for fork in self._requests.fork(sequence) if is_first else ():
            with self._shortage.noted():
                emit_accepted(fork, tree, entry.root, logits, at_once=self._at_once)
            if fork.is_beginning and fork.finish is None:
                self._scheduler.add_paused(fork)  # memory ran out: it chooses its token later
                continue
            events.append(fork.report())
            if fork.finish is None:
                self._scheduler.add_fork(fork, self._cache.fork(sequence.pages))
            else:
                fork.mark_finished()
                self._requests.end(fork)
        self._requests.resume_others(sequence.request)
        if sequence.finish is not None:
            self._scheduler.remove(sequence)
            self._requests.end(sequence)
        return events

    def _keep(self, entry: Entry, accepted: Sequence[int]) -> None:
        """Store the KV of pending tokens and accepted rows, and move the draft's root.

        Where memory runs out, the tokens stay pending: their rows run again in the next pass.
        """
        sequence = entry.sequence
        with self._shortage.noted():
            self._cache.append_rows(sequence.pages, entry.kept_rows(accepted))
        self._cache.publish(sequence.pages, sequence.tokens)
        if entry.tree is not None:
            with self._shortage.noted():  # the draft is dropped before the next pass
                self._drafting.commit(sequence, entry.tree, accepted)
