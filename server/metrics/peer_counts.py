"""The measurements of a request that came from another server."""

from cluster.answering import Observer
from cluster.wire import Ask
from engine.errors import EngineError
from engine.messages import Tokens
from server.errors import ApiError, as_api_error
from server.metrics.measurement import Asked, Measurement
from server.metrics.usage import Totals


class PeerCounts(Observer):
    """What becomes of a request of another server, for metrics, log and traces.

    Args:
        measured: is filled.
        model: the id of the model.
    """

    def __init__(self, measured: Measurement, model: str, ask: Ask) -> None:
        message, params = ask.message, ask.message.params
        self.measured, self._num_prompt = measured, len(message.prompt)
        given = sum(len(tail.ids) for tail in message.emitted)
        self._totals = Totals(message.num_unfinished, params.seed, self._num_prompt, given)
        measured.set_model(model)
        measured.come_from_peer()
        asked = Asked(
            message.request_id, message.n, params.max_tokens, params.temperature, params.top_p
        )
        measured.begin(self._totals, asked)

    def note_prompt(self, done: int) -> None:
        """Note how many tokens of the prompt are stored."""
        self._totals.note_begun(0, done, self._num_prompt)
        self.measured.wait.note_prompt(done, self._num_prompt)

    def note_lost(self) -> None:
        """Note that the engine process has died, and that a new one continues the request."""
        self.measured.wait.note_lost()

    def note_generated(self, num_tokens: int) -> None:
        """Count tokens that the engine has sent."""
        self._totals.note_generated(num_tokens)

    def note(self, tokens: Tokens) -> None:
        """Note tokens of the answer."""
        self._totals.add(tokens)
        if not tokens.is_replayed:
            self.measured.note_tokens(len(tokens.ids))

    def complete(self) -> None:
        """Note that all choices have finished."""
        self.measured.complete()

    def fail(self, error: EngineError | ApiError) -> None:
        """Note the error that ends the answer."""
        known = as_api_error(error)
        self.measured.fail(known.code, known.status)

    def leave(self) -> None:
        """Note that the answer is read no further; after its end this changes nothing."""
        self.measured.leave()
