"""The requests that an engine has accepted: how they begin, end and fail."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from engine.errors import ModelError, PassFailed, RequestError
from engine.log_lines import of_request
from engine.messages import Failed, Generate, Tokens
from engine.model.borrowed import PassCancelled
from engine.runtime.audit import Auditor
from engine.runtime.load import Loaded
from engine.runtime.replay import Replays
from engine.sampling.grammar.constraint import Constraint
from engine.sequences.scheduler import Scheduler, Turn
from engine.sequences.sequence import Request, TokenSequence

log = logging.getLogger(__name__)

Events = list[Tokens | Failed]


class Requests:
    """The accepted requests of an engine, by id, until the last choice of each has ended."""

    def __init__(
        self,
        loaded: Loaded,
        scheduler: Scheduler,
        auditor: Auditor,
        on_prompt: Callable[[str, int], None],
    ) -> None:
        """Create the collection without requests.

        `on_prompt` is called before a pass for each request whose prompt it runs: with its id, and
        the number of prompt tokens whose KV is stored.
        """
        self._loaded = loaded
        self._scheduler = scheduler
        self._auditor = auditor
        self._on_prompt = on_prompt
        self._by_id: dict[str, Request] = {}
        self._replays = Replays(loaded.decoder.on_pass_progress)
        self._ended: Events = []  # of choices that have ended without a pass

    def add(self, message: Generate, constraint: Constraint | None) -> None:
        """Queue a request with its compiled grammar.

        Raises `RequestError` if the prompt is too long for the model or the KV cache.
        """
        most = self._loaded.limits.max_tokens
        if len(message.prompt) + message.params.least_tokens > most:
            raise RequestError(
                f"the prompt has {len(message.prompt)} tokens; this model can hold {most} tokens "
                "of prompt and answer together",
                code="context_length_exceeded",
            )
        thinking = self._loaded.thinking(message.params)
        request = Request(message, self._loaded.limits, constraint, thinking)
        if message.emitted:
            self._replays.add(request, lambda: self._loaded.stop_rules(message))
        else:
            self._scheduler.add(TokenSequence(request, 0, self._loaded.stop_rules(message)))
        self._by_id[message.request_id] = request

    def replay(self, seconds: float) -> bool:
        """Replay tails for up to `seconds`, and queue the requests that are complete.

        Return False if there are none to replay.
        """
        has_replays = bool(self._replays)
        for request, error in self._replays.run(seconds):
            if error is None:
                self._resume(request)
                continue
            name, code = request.message.request_id, error.code or "invalid_request"
            del self._by_id[name]
            self._ended.append(Failed(name, str(error), code, error.param))
        return has_replays

    def _resume(self, request: Request) -> None:
        """Queue a request whose tails were replayed."""
        self._end_replayed(request)
        if not request.resumed:
            del self._by_id[request.message.request_id]
            return
        first = request.resumed.pop(0)
        if any(tail.is_read for tail in request.message.emitted):
            self._scheduler.add_paused(first)
        else:  # a new request, which waits for its turn
            self._scheduler.add(first)

    def _end_replayed(self, request: Request) -> None:
        """End the choices whose tokens are complete with their replay."""
        for sequence in [own for own in request.resumed if own.finish is not None]:
            request.resumed.remove(sequence)
            request.end_choice()
            self._ended += sequence.take_reports()

    def take_ended(self) -> Events:
        """Return the messages of choices that ended without a pass, since the last call."""
        ended, self._ended = self._ended, []
        return ended

    @property
    def has_own_work(self) -> bool:
        """Whether tails are being replayed, or an end without a pass is not reported."""
        return bool(self._replays) or bool(self._ended)

    def abort(self, request_id: str) -> None:
        """Cancel a request whose client has left. Any thread may call this."""
        request = self._by_id.get(request_id)
        if request is not None:
            request.cancelled.set()

    def drop_cancelled(self) -> None:
        """Remove the requests whose clients have left."""
        for sequence in self._scheduler.drop_cancelled():
            self._by_id.pop(sequence.request_id, None)
        for request in self._replays.drop_cancelled():
            del self._by_id[request.message.request_id]

    def report_prompts(self, turns: Sequence[Turn]) -> None:
        """Call `on_prompt` for the prompts of a pass that begins, and for those that are read.

        Each request is reported when its first pass begins, again if that is repeated, and then
        once a second at most. A prompt that runs again with a tail is reported like others.
        """
        now = time.monotonic()
        read = [own for own in self._scheduler.running if own.pages.reading is not None]
        for sequence in [*(turn.sequence for turn in turns), *read]:
            if not sequence.is_beginning:
                continue
            is_first = not sequence.has_run and sequence.pages.reading is None
            if sequence.request.is_report_due(now, is_first=is_first):
                done = min(sequence.pages.length, sequence.num_prompt)
                self._on_prompt(sequence.request_id, done)

    def fork(self, sequence: TokenSequence) -> Iterator[TokenSequence]:
        """Yield the other choices of a new request, given the first one, which has run the prompt.

        Choices that an earlier engine has begun are no forks: each has its own last token.
        """
        message = sequence.request.message
        if message.emitted:
            return
        for choice in range(1, message.n):
            rules = self._loaded.stop_rules(message)
            yield TokenSequence(
                sequence.request, choice, rules, sequence.num_cached, sequence.passes
            )

    def resume_others(self, request: Request) -> None:
        """Let the other resumed choices of a request run, after the first one has run the prompt.

        They then find the prompt's pages in the prefix cache.
        """
        while request.resumed:
            self._scheduler.add_paused(request.resumed.pop(0))

    def end(self, sequence: TokenSequence) -> None:
        """Record that a choice has finished, and remove the request after its last choice."""
        if not sequence.request.message.is_continued:
            self._auditor.offer(sequence)
        if sequence.request.end_choice():
            del self._by_id[sequence.request_id]

    @contextmanager
    def fail_pass_on_error(
        self, sequences: Sequence[TokenSequence], events: Events
    ) -> Iterator[None]:
        """Handle the errors of a block that runs a pass, so that the next pass can run.

        If weights cannot be read, the requests of `sequences` fail, which is appended to `events`.
        If all clients of the pass have left, the pass ends without an event.
        """
        try:
            yield
        except PassCancelled:
            self._loaded.stream.seek()
        except ModelError as error:
            self._loaded.stream.seek()
            events += self.fail(sequences, str(error), "weights_unreadable")

    @contextmanager
    def fail_request_on_error(self, sequence: TokenSequence, events: Events) -> Iterator[None]:
        """Let only the request of `sequence` fail if the block, which emits its tokens, raises.

        The block raises `RequestError` when the request's grammar has become too complex to be
        followed, and `PassFailed` when its logits are not finite.
        """
        try:
            yield
        except (RequestError, PassFailed) as error:
            if error.__cause__ is not None:  # a mistake in the answer's parser
                log.error(
                    "%s failed",
                    sequence.request_id,
                    exc_info=error.__cause__,
                    extra=of_request(sequence.request.message.http_id),
                )
            events += self.fail([sequence], str(error), error.code or "invalid_request")

    def fail(self, sequences: Sequence[TokenSequence], message: str, code: str) -> list[Failed]:
        """Remove the requests of some sequences with all their choices; return their failures."""
        failed = dict.fromkeys(sequence.request for sequence in sequences)  # ordered, each once
        for sequence in list(self._scheduler.all_sequences()):
            if sequence.request in failed:
                self._scheduler.remove(sequence)
        for request in failed:
            request.cancelled.set()  # its other choices of this pass are skipped
            self._by_id.pop(request.message.request_id, None)
        return [Failed(request.message.request_id, message, code) for request in failed]
