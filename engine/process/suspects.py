"""The rules about requests whose process has died: which one caused it, and which go on how.

Any request that the process had may have caused its death. So those of the last pass run again one
by one, each until its next token, before all go on together. A request is refused only if it was
alone in a pass at its second death, and had emitted no token since the first: one that gets further
each time is not what ends the process, and neither is one that has not run. The rules do no I/O.
"""

from collections import OrderedDict, deque
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from engine.messages import Generate

DEATHS_TO_REFUSE = 2  # in passes, without a token between them
MOST_DEATHS = 5  # of any kind: each costs all requests a restart
REFUSAL_S = 600.0
MAX_FINGERPRINTS = 1024
GOOD_TOKENS = 32  # emitted since a death: then the request did not cause it
# Tokens of each choice that a request emits alone. A request that has lived through several deaths
# may fail in a pass of a kind that comes later than the first one.
TOKENS_ALONE = 1
MORE_TOKENS_ALONE = 16


@dataclass(frozen=True)
class _Deaths:
    count: int
    num_stuck: int  # of them the last ones in a pass, between which no token was emitted
    last: float  # the monotonic time of the last one
    is_refused: bool


class DeathHistory:
    """The deaths of processes that had a request, counted by the request's fingerprint.

    A request is refused for 600 s if it was alone in a pass at its second death without a token
    since the first, or alone at its fifth. So it costs at most one more restart in that time.
    """

    def __init__(self) -> None:
        self._deaths: OrderedDict[Hashable, _Deaths] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._deaths)

    def record(
        self,
        fingerprint: Hashable,
        now: float,
        *,
        was_alone: bool,
        has_run: bool = True,
        has_progressed: bool = False,
    ) -> None:
        """Count the death of a process that had this request.

        Args:
            now: the monotonic time.
            was_alone: whether the process had no other request.
            has_run: whether a pass of the process had run some of it.
            has_progressed: whether the request has emitted a token since the death before.
        """
        before = self._deaths.pop(fingerprint, None)
        count, num_stuck = (0, 0) if before is None else (before.count, before.num_stuck)
        count += 1
        if has_run:
            num_stuck = 1 if has_progressed else num_stuck + 1
        is_cause = (has_run and num_stuck >= DEATHS_TO_REFUSE) or count >= MOST_DEATHS
        self._deaths[fingerprint] = _Deaths(count, num_stuck, now, was_alone and is_cause)
        if len(self._deaths) > MAX_FINGERPRINTS:
            self._deaths.popitem(last=False)

    def forget(self, fingerprint: Hashable) -> None:
        """Forget the deaths of a request that has emitted many tokens, or all, since the last."""
        self._deaths.pop(fingerprint, None)

    def count(self, fingerprint: Hashable) -> int:
        """Return how many deaths are known of a request."""
        deaths = self._deaths.get(fingerprint)
        return 0 if deaths is None else deaths.count

    def is_refused(self, fingerprint: Hashable, now: float) -> bool:
        """Return whether a request is refused because of its deaths."""
        deaths = self._deaths.get(fingerprint)
        return deaths is not None and deaths.is_refused and now - deaths.last < REFUSAL_S


@dataclass(frozen=True)
class Held:
    """A request that a process had when it died.

    Args:
        name: identifies the request.
        has_run: whether a pass of the process had run some of it.
        num_deaths: the deaths that are known of it, this one included.
    """

    name: str
    has_run: bool
    num_deaths: int


def suspects_of(held: Sequence[Held]) -> list[str]:
    """Return which requests of a process that died have to run alone, in this order.

    These are the requests of its passes; if there are none, all. A request that only waited is
    among them after its second death: what is done before a pass can end the process too.
    """
    is_any = any(request.has_run for request in held)
    return [
        request.name
        for request in held
        if request.has_run or not is_any or request.num_deaths >= DEATHS_TO_REFUSE
    ]


class Quarantine:
    """The requests that run alone, one by one, each until it has emitted its next tokens."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self.current: str | None = None  # runs alone now
        self._num_left = 0  # tokens that the current one has to emit

    def begin(self, names: Iterable[str]) -> None:
        """Let these requests run alone, before those of an earlier death that have not run yet."""
        first = dict.fromkeys(names)
        later = [name for name in self._waiting if name not in first]
        self._waiting = deque([*first, *later])
        self.current = None

    def start_next(self, num_tokens: int) -> None:
        """Let the next request run, which is then `current`, until it has emitted `num_tokens`."""
        self.current, self._num_left = self._waiting.popleft(), num_tokens

    @property
    def next(self) -> str | None:
        """The request that runs alone next; None if there is none."""
        return self._waiting[0] if self._waiting else None

    def note_tokens(self, name: str, count: int) -> bool:
        """Note emitted tokens. Return True if the current request has run alone for long enough."""
        if name != self.current:
            return False
        self._num_left -= count
        if self._num_left > 0:
            return False
        self.current = None
        return True

    def remove(self, name: str) -> None:
        """Remove a request that has ended."""
        if name == self.current:
            self.current = None
        elif name in self._waiting:
            self._waiting.remove(name)


def fingerprint_of(message: Generate) -> Hashable:
    """Return a value that is equal for repetitions of a request, whatever their seeds.

    The front end draws a new seed for each request that has none. Tokens that were emitted already
    do not count.
    """
    return hash((message.prompt, replace(message.params, seed=0), message.n))
