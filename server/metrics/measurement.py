"""The measurement of one request, from its first byte to the end of its answer."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.metrics.usage import Totals
from server.metrics.wait_status import Wait

MOST_PASSES = 128  # whose times are kept
CLIENT_GONE = 499  # nginx's status for a client that left; the answer is not sent
LONGEST_LIST = 2000  # characters: many clients and proxies take headers of 8 KiB, all together


def listed(names: Sequence[str]) -> str:
    """Return `names`, parts of a request, as a header's value: each once, and a bounded number."""
    text = ""
    distinct = list(dict.fromkeys(names))
    for index, name in enumerate(distinct):
        clean = re.sub(r"[^ -+\--~]", "?", name[:100])
        if len(text) + len(clean) > LONGEST_LIST:
            return f"{text}, and {len(distinct) - index} more"
        text += f", {clean}" if text else clean
    return text


@dataclass(frozen=True)
class Asked:
    """What a request asks of the engine, as far as traces show it."""

    id: str  # of the answer
    num_choices: int
    max_tokens: int | None
    temperature: float
    top_p: float


@dataclass
class Measurement:
    """The measured properties of a request, which become known while it is served."""

    route: str  # "" for requests that generate nothing
    method: str = "-"
    path: str = "-"  # without the query
    client: str = "-"  # its address
    request_id: str = ""
    headers: Sequence[tuple[bytes, bytes]] = ()  # of the request, for the context of traces
    model: str = ""  # the id of the model, once it is known to exist
    outcome: str = ""  # a finish reason, the code of an error or "client_left"; "" while unknown
    first_token_s: float | None = None  # seconds from the request to its first token
    passes: list[tuple[float, int]] = field(default_factory=list)  # time, tokens; of the first ones
    status: int = 0  # what the client saw; of a stream that failed, that of its error
    left_out: str = ""  # what of the request the model was not given
    totals: Totals | None = None  # of the answer, once it is begun
    asked: Asked | None = None
    is_of_peer: bool = False  # another server sent it, which counts its tokens
    wait: Wait = field(default_factory=Wait)
    started: float = field(default_factory=time.perf_counter)
    started_ns: int = field(default_factory=time.time_ns)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """Return the seconds since the request arrived, until its answer has ended."""
        return (self.ended or time.perf_counter()) - self.started

    @property
    def first_token_at(self) -> float | None:
        """Return the time of the first token, as `started`; None before it."""
        return None if self.first_token_s is None else self.started + self.first_token_s

    def wall_ns(self, at: float) -> int:
        """Return the nanoseconds since 1970 of a time that is given as `started` is."""
        return self.started_ns + round(1e9 * (at - self.started))

    def come_from_peer(self) -> None:
        """Note that another server sent the request, for a client of its own."""
        self.is_of_peer = True

    def set_model(self, model: str) -> None:
        """Note the id of the model that the request is for."""
        self.model = model

    def leave_out(self, names: Sequence[str]) -> None:
        """Note what of the request the model was not given."""
        self.left_out = listed(names)

    def note_tokens(self, num_tokens: int) -> None:
        """Note that a pass of the engine emitted tokens for the request."""
        self.wait.end()
        if len(self.passes) < MOST_PASSES:
            self.passes.append((time.perf_counter(), num_tokens))
        if self.first_token_s is None:
            self.first_token_s = self.seconds

    def begin(self, totals: Totals, asked: Asked) -> None:
        """Note that an answer is begun, whose tokens `totals` counts."""
        self.totals, self.asked = totals, asked

    def complete(self) -> None:
        """Note that all choices of the answer have finished."""
        assert self.totals is not None, "the answer was begun"
        self.outcome = self.totals.finish

    def fail(self, code: str | None, status: int) -> None:
        """Note the code and the status of the error with which the request ends."""
        self.outcome, self.status = code or "", status

    def leave(self) -> None:
        """Note that the client left, unless the outcome is already known."""
        if not self.outcome:
            self.outcome, self.status = "client_left", CLIENT_GONE

    def close(self, status: int) -> None:
        """Note that the answer has ended.

        Args:
            status: that of the answer; it counts, and is the outcome, if nothing else is known.
        """
        self.ended = time.perf_counter()
        self.status = self.status or status
        self.outcome = self.outcome or f"http_{status}"
