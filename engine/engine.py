"""The step: schedule, draft, walk the layers, verify, emit.

One pass serves every running sequence; it is the only time weights move.
"""

import time
from collections.abc import Callable
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from engine.decoder import HEAD_ROWS, PassCancelled
from engine.errors import ModelError, RequestError
from engine.load import Loaded, load
from engine.messages import Failed, Generate, ModelInfo, PassStats, Tokens
from engine.passes import Entry, Pass, assemble
from engine.sampling import choose, model_logprobs
from engine.scheduler import Scheduler, Turn
from engine.sequence import Request, Sequence
from engine.spec import ModelSpec
from engine.tree import DraftTree
from engine.verify import verify

Events = list[Tokens | Failed]


class Engine:
    """One loaded model and the requests it serves. `step` is called by one thread."""

    def __init__(self, loaded: Loaded) -> None:
        self.info: ModelInfo = loaded.info
        self.last_pass: PassStats | None = None
        self.on_unit: Callable[[int], None] | None = None
        self._loaded = loaded
        self._decoder = loaded.decoder
        self._cache = loaded.cache
        self._drafter = loaded.drafter
        self._requests: dict[str, Request] = {}
        self._scheduler = Scheduler(
            loaded.cache,
            max_sequences=loaded.plan.max_sequences,
            max_rows=loaded.plan.max_rows,
            scratch_rows=loaded.scratch_rows,
            release=loaded.drafter.release,
        )
        self._num_borders = 0
        loaded.decoder.on_border = self._border

    @classmethod
    def load(cls, spec: ModelSpec, progress: Callable[[str, int, int], None]) -> "Engine":
        """Load a model. Raises `ModelError`."""
        with torch.inference_mode():
            return cls(load(spec, progress))

    def close(self) -> None:
        self._loaded.stream.close()

    def add(self, message: Generate) -> None:
        """Queue a request. Raises `RequestError` for one that could never be served."""
        most = self._loaded.limits.max_tokens
        if len(message.prompt) >= most:
            raise RequestError(
                f"the prompt has {len(message.prompt)} tokens; this model can hold {most} tokens "
                "of prompt and answer together",
                code="context_length_exceeded",
            )
        request = Request(message, self._loaded.limits)
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
        try:
            return self._run(turns)
        except PassCancelled:
            self._loaded.stream.seek(0)
            return []
        except ModelError as error:
            # Weights could not be read: the requests of this pass fail, the next pass works.
            self._loaded.stream.seek(0)
            return self._fail(turns, str(error))

    def _run(self, turns: Seq[Turn]) -> Events:
        started = time.perf_counter()
        trees = self._draft(turns)
        drafted = time.perf_counter()
        moved = self._loaded.stream.stats.bytes
        walk = assemble(turns, trees, self._cache, self._decoder)
        hidden = self._decoder.forward(walk.tokens, walk.positions, walk.long, walk.batch)
        events = self._verify(walk, hidden)
        ended = time.perf_counter()
        self._scheduler.cap.observe(
            ended - drafted,
            with_prompt=any(entry.chain for entry in walk.entries),
            decoding=any(not entry.chain for entry in walk.entries),
        )
        self.last_pass = PassStats(
            rows=len(walk.tokens),
            sequences=len(turns),
            accepted=sum(len(event.ids) for event in events if isinstance(event, Tokens)),
            draft_ms=(drafted - started) * 1e3,
            pass_ms=(ended - drafted) * 1e3,
            link_gbps=(self._loaded.stream.stats.bytes - moved) / (ended - drafted) / 1e9,
            free_pages=self._cache.num_free_pages,
            waiting=self._scheduler.num_waiting,
        )
        return events

    def _draft(self, turns: Seq[Turn]) -> list[DraftTree | None]:
        """A tree for each turn: drafted, the bare root after a prompt, none within a prompt."""
        drafting = [turn for turn in turns if turn.room > 1]
        proposed = self._drafter.propose(
            [turn.sequence for turn in drafting], [turn.room for turn in drafting]
        )
        trees = {t: DraftTree.root(t.sequence.tokens[-1]) for t in turns if t.room == 1}
        trees |= dict(zip(drafting, proposed, strict=True))
        return [trees.get(turn) for turn in turns]

    def _verify(self, walk: Pass, hidden: Tensor) -> Events:
        """Walk every tree with the target's logits; keep what was accepted."""
        if not walk.batch.alive():
            raise PassCancelled
        events: Events = []
        with self._decoder.head() as head:
            logits = _Logits(hidden, head)
            for entry in walk.entries:
                sequence = entry.turn.sequence
                if sequence.request.cancelled.is_set():
                    continue  # its tiles may have been skipped
                sequence.passes += 1
                if entry.tree is None:
                    self._keep(entry, [])
                else:
                    events += self._advance(entry, entry.tree, logits)
        return events

    def _advance(self, entry: Entry, tree: DraftTree, logits: "_Logits") -> Events:
        """Emit what the target accepts of one tree; after a prompt, start the other choices."""
        sequence = entry.turn.sequence
        request, is_prompt = sequence.request, len(sequence.tokens) == sequence.num_prompt
        self._keep(entry, self._walk(sequence, tree, entry.root, logits))
        events: Events = [sequence.report()]
        if is_prompt and sequence.choice == 0:
            for choice in range(1, request.message.n):
                twin = self._sequence(request, choice)
                twin.num_cached, twin.passes = sequence.num_cached, 1
                self._walk(twin, tree, entry.root, logits)
                events.append(twin.report())
                if twin.finish is None:
                    twin.table = self._cache.fork(sequence.pages)
                    self._scheduler.adopt(twin)
                else:
                    self._ended(request)
        if sequence.finish is not None:
            self._scheduler.finish(sequence)
            self._ended(request)
        return events

    def _walk(self, sequence: Sequence, tree: DraftTree, root: int, logits: "_Logits") -> list[int]:
        """Verify one tree, emitting on the way; the accepted rows, from the root down."""
        params = sequence.params
        own = logits.row(root)

        def choose_token(row: int) -> int:
            nonlocal own
            own = logits.row(root + row)
            position = len(sequence.tokens)
            return choose(
                own,
                params,
                sequence.counts,
                position=position,
                choice=sequence.choice,
                banned=sequence.banned(position),
            )

        def emit(token: int) -> bool:
            if params.logprobs is None:
                return sequence.emit(token)
            return sequence.emit(token, model_logprobs(own, token, params.logprobs))

        accepted = verify(tree, choose_token, emit)
        sequence.drafted += len(tree.tokens) - 1
        sequence.accepted += len(accepted.rows) - 1
        return list(accepted.rows)

    def _keep(self, entry: Entry, rows: list[int]) -> None:
        sequence = entry.turn.sequence
        self._cache.keep(sequence.pages, entry.kept(rows))
        self._cache.publish(sequence.pages, sequence.tokens)
        self._drafter.commit(sequence, rows)

    def _sequence(self, request: Request, choice: int) -> Sequence:
        return Sequence(request, choice, self._loaded.stop_rules(request.message))

    def _ended(self, request: Request) -> None:
        request.num_unfinished -= 1
        if request.num_unfinished == 0:
            del self._requests[request.message.request_id]

    def _fail(self, turns: Seq[Turn], message: str) -> Events:
        failed = {turn.sequence.request: None for turn in turns}  # ordered, each once
        for sequence in list(self._scheduler.all()):
            if sequence.request in failed:
                self._scheduler.remove(sequence)
        for request in failed:
            self._requests.pop(request.message.request_id, None)
        return [Failed(r.message.request_id, message, "weights_unreadable") for r in failed]

    def _border(self) -> None:
        self._num_borders += 1
        if self.on_unit is not None:
            self.on_unit(self._num_borders)


class _Logits:
    """Logits of the rows a walk visits, computed in blocks, each at most once.

    Walks ask for ascending rows, so one block is all that is held: 64 x V.
    """

    def __init__(self, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> None:
        self._hidden = hidden
        self._head = head
        self._first = -HEAD_ROWS
        self._block = hidden[:0]

    def row(self, row: int) -> Tensor:
        """Logits [V] of a row of the pass."""
        first = row // HEAD_ROWS * HEAD_ROWS
        if first != self._first:
            self._first = first
            self._block = self._head(self._hidden[first : first + HEAD_ROWS])
        return self._block[row - first]
