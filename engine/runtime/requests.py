"""The requests that an engine has accepted: how they begin, end and fail."""

from collections.abc import Callable, Iterator, Sequence as Seq
from contextlib import contextmanager

from engine.errors import ModelError, PassFailed, RequestError
from engine.messages import Failed, Generate, Tokens
from engine.model.decoder import PassCancelled
from engine.runtime.audit import Auditor
from engine.runtime.load import Loaded
from engine.sequences.scheduler import Scheduler, Turn
from engine.sequences.sequence import Request, Sequence

Events = list[Tokens | Failed]


class Requests:
    """Requests by id, from their acceptance until their last choice has ended."""

    def __init__(
        self,
        loaded: Loaded,
        scheduler: Scheduler,
        auditor: Auditor,
        on_start: Callable[[str], None],
    ) -> None:
        """`on_start` is called with the id of each request that takes part in its first pass."""
        self._loaded = loaded
        self._scheduler = scheduler
        self._auditor = auditor
        self._on_start = on_start
        self._by_id: dict[str, Request] = {}

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
        self._by_id[message.request_id] = request
        self._scheduler.add(Sequence(request, 0, self._loaded.stop_rules(message)))

    def abort(self, request_id: str) -> None:
        """Cancel a request whose client left. May be called from any thread."""
        request = self._by_id.get(request_id)
        if request is not None:
            request.cancelled.set()

    def drop_cancelled(self) -> None:
        """Forget the requests whose clients left."""
        for sequence in self._scheduler.drop_cancelled():
            self._by_id.pop(sequence.request_id, None)

    def start(self, turns: Seq[Turn]) -> None:
        """Report requests that begin: again when their first pass was cut short."""
        for turn in turns:
            if turn.sequence.passes == 0:
                self._on_start(turn.sequence.request_id)

    def fork(self, sequence: Sequence) -> Iterator[Sequence]:
        """Yield the other choices of a request whose first choice has run the prompt."""
        message = sequence.request.message
        for choice in range(1, message.n):
            rules = self._loaded.stop_rules(message)
            yield Sequence(sequence.request, choice, rules, sequence.num_cached, sequence.passes)

    def end(self, sequence: Sequence) -> None:
        """Take a finished choice off its request; the request ends with its last choice."""
        self._auditor.offer(sequence)
        if sequence.request.end_choice():
            del self._by_id[sequence.request_id]

    @contextmanager
    def surviving(self, sequences: Seq[Sequence], events: Events) -> Iterator[None]:
        """Catch what ends the pass in the block, so that the engine can run its next pass.

        The requests of these sequences fail where weights cannot be read. A pass whose clients
        have all left just ends.
        """
        try:
            yield
        except PassCancelled:
            self._loaded.stream.seek()
        except ModelError as error:
            self._loaded.stream.seek()
            events += self._fail(sequences, str(error), "weights_unreadable")

    @contextmanager
    def refusing(self, sequence: Sequence, events: Events) -> Iterator[None]:
        """Fail only this sequence's request where its answer cannot go on.

        That is where its grammar can be followed no further, or its logits are no numbers.
        """
        try:
            yield
        except (RequestError, PassFailed) as error:
            events += self._fail([sequence], str(error), error.code or "invalid_request")

    def _fail(self, sequences: Seq[Sequence], message: str, code: str) -> list[Failed]:
        failed = dict.fromkeys(sequence.request for sequence in sequences)  # ordered, each once
        for sequence in list(self._scheduler.all()):
            if sequence.request in failed:
                self._scheduler.remove(sequence)
        for request in failed:
            request.cancelled.set()  # its other choices of this pass are not walked
            self._by_id.pop(request.message.request_id, None)
        return [Failed(request.message.request_id, message, code) for request in failed]
