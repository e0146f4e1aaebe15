"""One request as it is measured: from its first byte to the end of its answer."""

import time
from dataclasses import dataclass, field

from server.metrics.usage import Totals
from server.metrics.wait_status import Wait


@dataclass
class Measurement:
    """What becomes known of a request while it is served."""

    route: str  # "" for requests that generate nothing
    model: str = ""  # its id, once it is known to exist
    outcome: str = ""  # a finish reason, an error's code, "client_left"; "" while unknown
    first_token_s: float | None = None
    totals: Totals | None = None  # of a complete answer
    wait: Wait = field(default_factory=Wait)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the request came."""
        return time.perf_counter() - self.started

    def set_model(self, model: str) -> None:
        """Note the id of the model that the request is for."""
        self.model = model

    def token(self) -> None:
        """Note that the engine emitted something for the request."""
        self.wait.over()
        if self.first_token_s is None:
            self.first_token_s = self.seconds

    def complete(self, totals: Totals) -> None:
        """Note that all choices are finished."""
        self.outcome, self.totals = totals.finish, totals

    def fail(self, code: str | None) -> None:
        """Note the code of the error that the request ends with."""
        self.outcome = code or ""

    def leave(self) -> None:
        """Note that the client left, unless the outcome is known already."""
        self.outcome = self.outcome or "client_left"

    def close(self, status: int) -> None:
        """Note that the answer has ended; its status is the outcome where nothing else is known."""
        self.outcome = self.outcome or f"http_{status}"
