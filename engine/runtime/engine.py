"""The step: schedule, draft, walk the layers, verify, emit.

One pass serves every running sequence; it is the only time weights move.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.drafting.drafter import Figures
from engine.drafting.tree import DraftTree
from engine.errors import ModelError, RequestError
from engine.messages import (
    PREDICTION,
    Failed,
    Generate,
    ModelInfo,
    PassStats,
    ReportProgress,
    Tokens,
)
from engine.model.decoder import PassCancelled
from engine.runtime.audit import Auditor
from engine.runtime.choices import Logits, choose_ahead, choose_tree, settle
from engine.runtime.load import Loaded, load
from engine.runtime.passes import Entry, Pass, assemble
from engine.runtime.scoring import score_prompt
from engine.runtime.verify import verify
from engine.sampling.large_vocabularies.blocks import Matrix
from engine.sampling.logprobs import model_logprobs
from engine.sequences.scheduler import Scheduler, Turn
from engine.sequences.sequence import Request, Sequence
from engine.spec import ModelSpec
from engine.streaming.ring import LayerStream

Events = list[Tokens | Failed]


class Engine:
    """One loaded model and the requests it serves. `step` is called by one thread."""

    def __init__(self, loaded: Loaded) -> None:
        self.info: ModelInfo = loaded.info
        self.last_pass: PassStats | None = None
        self.on_unit: Callable[[int], None] | None = None
        self.on_start: Callable[[str], None] | None = None
        self._loaded = loaded
        self._decoder = loaded.decoder
        self._cache = loaded.cache
        self._drafting = loaded.drafting
        self._requests: dict[str, Request] = {}
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
        self.auditor: Auditor | None = None
        if loaded.audit:
            self.auditor = Auditor(
                loaded.audit,
                loaded.decoder,
                loaded.cache,
                max_rows=loaded.plan.max_rows,
                rewind=lambda: loaded.stream.seek(0),
            )
        self._num_borders = 0
        loaded.decoder.on_border = self._border
        loaded.stream.idle = self._drafting.ahead
        self._drafting.aside = loaded.device.ahead_stream()
        # Choices are made a tree at a time where the host would wait for each (`choose_tree`).
        self._at_once = loaded.device.is_asynchronous

    @classmethod
    def load(cls, spec: ModelSpec, progress: ReportProgress) -> "Engine":
        """Load a model. Raises `ModelError`. The thread that loads it also calls `step`."""
        with torch.inference_mode():
            return cls(load(spec, progress))

    def close(self) -> None:
        """Give back what the model holds of the machine."""
        self._loaded.stream.close()
        self._loaded.cache.release()

    def add(self, message: Generate) -> None:
        """Queue a request. Raises `RequestError` for one that could never be served."""
        most = self._loaded.limits.max_tokens
        if len(message.prompt) + message.params.least_tokens > most:
            raise RequestError(
                f"the prompt has {len(message.prompt)} tokens; this model can hold {most} tokens "
                "of prompt and answer together",
                code="context_length_exceeded",
            )
        constraint = self._loaded.constraint(message.params)
        request = Request(message, self._loaded.limits, constraint)
        self._requests[message.request_id] = request
        self._scheduler.add(self._sequence(request, choice=0))

    def abort(self, request_id: str) -> None:
        """The client left. Called from the thread that reads the pipe."""
        request = self._requests.get(request_id)
        if request is not None:
            request.cancelled.set()

    def has_work(self) -> bool:
        return bool(self._scheduler.running) or self._scheduler.num_waiting > 0

    @torch.inference_mode()
    def step(self) -> Events:
        """One pass; empty when nobody could run or every client left."""
        for sequence in self._scheduler.drop_cancelled():
            self._requests.pop(sequence.request.message.request_id, None)
        turns = self._scheduler.schedule()
        if not turns:
            return []
        self._tell_started(turns)
        try:
            return self._run(turns)
        except PassCancelled:
            self._loaded.stream.seek(0)
            return []
        except ModelError as error:
            # Weights could not be read: the requests of this pass fail, the next pass works.
            self._loaded.stream.seek(0)
            requests = [turn.sequence.request for turn in turns]
            return self._fail(requests, str(error), "weights_unreadable")

    def _tell_started(self, turns: Seq[Turn]) -> None:
        if self.on_start is not None:
            for sequence in (turn.sequence for turn in turns):
                if sequence.passes == 0:  # told again when its first pass was cut short
                    self.on_start(sequence.request.message.request_id)

    def _run(self, turns: Seq[Turn]) -> Events:
        clock = _Clock(self._loaded.stream)
        decoding = any(turn.is_decoding for turn in turns)
        trees = self._draft(turns)
        clock.drafted()
        walk = assemble(turns, trees, self._cache, self._decoder)
        with self._drafting.aside.passing():
            hidden = self._decoder.forward(walk.tokens, walk.positions, walk.long, walk.batch)
            clock.walked()
            events = self._verify(walk, hidden, clock)
        self._measure(walk, events, clock, decoding)
        return events

    def _draft(self, turns: Seq[Turn]) -> list[DraftTree | None]:
        """A tree for each turn: drafted, the bare root after a prompt, none within a prompt."""
        drafting = [turn for turn in turns if turn.is_decoding]
        proposed = self._drafting.propose(
            [turn.sequence for turn in drafting],
            [turn.room for turn in drafting],
            fixed_rows=sum(turn.chain for turn in turns if not turn.is_decoding),
            max_rows=self._scheduler.max_rows,
        )
        trees = {t: DraftTree.root(t.sequence.tokens[-1]) for t in turns if t.room == 1}
        trees |= dict(zip(drafting, proposed, strict=True))
        return [trees.get(turn) for turn in turns]

    def _verify(self, walk: Pass, hidden: Tensor, clock: "_Clock") -> Events:
        """Walk every tree with the target's logits; keep what was accepted."""
        if not walk.batch.alive():
            raise PassCancelled
        events: Events = []
        with self._decoder.head() as head:
            self._drafting.aside.join()  # nothing is drafted ahead from here on
            self._drafting.settle()
            logits = Logits(hidden, clock.timed(head), self._observe(walk))
            for entry in walk.entries:
                sequence = entry.turn.sequence
                score_prompt(entry, logits, self._border)
                if sequence.request.cancelled.is_set():
                    continue  # its tiles may have been skipped
                sequence.passes += 1
                if entry.tree is None:
                    self._keep(entry, [])
                else:
                    events += self._try_to_advance(entry, entry.tree, logits)
        return events

    def _try_to_advance(self, entry: Entry, tree: DraftTree, logits: Logits) -> Events:
        """`_advance`, or the end of a request whose grammar cannot be followed."""
        try:
            return self._advance(entry, tree, logits)
        except RequestError as error:
            request = entry.turn.sequence.request
            request.cancelled.set()  # its other choices of this pass are not walked
            return self._fail([request], str(error), error.code or "invalid_request")

    def _observe(self, walk: Pass) -> Callable[[int, Matrix], None]:
        """Shows the drafts all logits that were computed: those of rows nobody walked too."""

        def show(first: int, logits: Matrix) -> None:
            self._drafting.observe(walk.tokens[first : first + len(logits.values)], logits)

        return show

    def _advance(self, entry: Entry, tree: DraftTree, logits: Logits) -> Events:
        """Emit what the target accepts of one tree; after a prompt, start the other choices."""
        sequence = entry.turn.sequence
        request, is_prompt = sequence.request, len(sequence.tokens) == sequence.num_prompt
        self._keep(entry, self._walk(sequence, tree, entry.root, logits))
        events: Events = [sequence.report()]
        if is_prompt and sequence.choice == 0:
            for choice in range(1, request.message.n):
                twin = self._sequence(request, choice)
                twin.num_cached, twin.passes = sequence.num_cached, sequence.passes
                self._walk(twin, tree, entry.root, logits)
                events.append(twin.report())
                if twin.finish is None:
                    twin.table = self._cache.fork(sequence.pages)
                    self._scheduler.adopt(twin)
                else:
                    self._ended(twin)
        if sequence.finish is not None:
            self._scheduler.finish(sequence)
            self._ended(sequence)
        return events

    def _walk(self, sequence: Sequence, tree: DraftTree, root: int, logits: Logits) -> list[int]:
        """Verify one tree, emitting on the way; the accepted rows, from the root down."""
        params = sequence.params
        if sequence.max_new_tokens == 0:  # only its prompt was to be scored
            sequence.finish = "length"
            return [0]
        at_once = choose_tree(sequence, tree.depths, root, logits) if self._at_once else None
        chosen = dict(enumerate(at_once or ()))
        walked = 0  # the row at hand

        def choose_token(row: int) -> int:
            nonlocal walked
            walked = row
            if row not in chosen:
                chosen.update(choose_ahead(sequence, tree, row, root, logits))
            if (constraint := sequence.constraint) is None:
                return chosen[row]
            own, length = logits.row(root + row), len(sequence.tokens)
            return settle(sequence, chosen[row], own, constraint, sequence.counts, length)

        def emit(token: int) -> bool:
            origin = tree.origin(walked, token)
            if params.logprobs is None:
                return sequence.emit(token, None, *origin)
            own = logits.row(root + walked)
            return sequence.emit(token, model_logprobs(own, token, params.logprobs), *origin)

        accepted = verify(tree, choose_token, emit)
        sequence.drafted += len(tree.tokens) - 1
        sequence.accepted += len(accepted.rows) - 1
        sequence.prediction_checked += tree.sources.count(PREDICTION)
        return list(accepted.rows)

    def _keep(self, entry: Entry, rows: list[int]) -> None:
        sequence = entry.turn.sequence
        self._cache.keep(sequence.pages, entry.kept(rows))
        self._cache.publish(sequence.pages, sequence.tokens)
        if entry.tree is not None:
            self._drafting.commit(sequence, entry.tree, rows)

    def _measure(self, walk: Pass, events: Events, clock: "_Clock", decoding: bool) -> None:
        """Learn from the pass how long passes take, and tell what it did."""
        rows, prompt_rows = len(walk.tokens), sum(entry.chain for entry in walk.entries)
        figures, self._drafting.figures = self._drafting.figures, Figures()
        clock.ended(figures.ahead_seconds)
        accepted = sum(len(event.ids) for event in events if isinstance(event, Tokens))
        policy = self._drafting.policy
        policy.passes.observe(rows, clock.compute, clock.link, walk.num_pairs)
        if not prompt_rows:
            policy.observe(len(walk.entries), accepted, clock.draft + clock.passed)
        self._scheduler.cap.observe(clock.passed, with_prompt=prompt_rows > 0, decoding=decoding)
        self.last_pass = PassStats(
            rows=rows,
            sequences=len(walk.entries),
            accepted=accepted,
            draft_ms=clock.draft * 1e3,
            pass_ms=clock.passed * 1e3,
            link_gbps=clock.link_bytes / clock.passed / 1e9,
            free_pages=self._cache.num_free_pages,
            waiting=self._scheduler.num_waiting,
            prompt_rows=prompt_rows,
            drafted_by=tuple(figures.drafted.items()),
            accepted_by=tuple(figures.accepted.items()),
            ahead_ms=figures.ahead_seconds * 1e3,
            copy_stall_ms=clock.stall * 1e3,
            host_ms=clock.host * 1e3,
            link_bytes=clock.link_bytes,
            undrafted=figures.undrafted,
        )

    def _sequence(self, request: Request, choice: int) -> Sequence:
        return Sequence(request, choice, self._loaded.stop_rules(request.message))

    def _ended(self, sequence: Sequence) -> None:
        request = sequence.request
        if self.auditor is not None:
            self.auditor.offer(sequence)
        request.num_unfinished -= 1
        if request.num_unfinished == 0:
            del self._requests[request.message.request_id]

    def _fail(self, requests: Seq[Request], message: str, code: str) -> Events:
        failed = dict.fromkeys(requests)  # ordered, each once
        for sequence in list(self._scheduler.all()):
            if sequence.request in failed:
                self._scheduler.remove(sequence)
        for request in failed:
            self._requests.pop(request.message.request_id, None)
        return [Failed(request.message.request_id, message, code) for request in failed]

    def _border(self) -> None:
        self._num_borders += 1
        if self.on_unit is not None:
            self.on_unit(self._num_borders)


class _Clock:
    """Where the time of one step goes; all figures are seconds."""

    def __init__(self, stream: LayerStream) -> None:
        self._stream = stream
        self._before = stream.stats
        self._started = self._drafted = self._walked = time.perf_counter()
        self._head = 0.0
        self.draft = self.passed = self.stall = self.compute = self.host = self.link = 0.0
        self.link_bytes = 0

    def drafted(self) -> None:
        self._drafted = time.perf_counter()

    def walked(self) -> None:
        self._walked = time.perf_counter()

    def timed(self, head: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        """The head, its time counted."""

        def run(hidden: Tensor) -> Tensor:
            began = time.perf_counter()
            logits = head(hidden)
            self._head += time.perf_counter() - began
            return logits

        return run

    def ended(self, ahead: float) -> None:
        """The step is over; `ahead` seconds of its pass went into drafting."""
        now, stats, before = time.perf_counter(), self._stream.stats, self._before
        self.draft = self._drafted - self._started
        self.passed = now - self._drafted
        self.stall = stats.stall_seconds - before.stall_seconds
        self.link = stats.busy_seconds - before.busy_seconds
        self.link_bytes = stats.bytes - before.bytes
        self.compute = max(self.passed - self.stall - ahead, 0.0)
        self.host = max(now - self._walked - self._head, 0.0)
