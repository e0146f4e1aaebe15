"""The choice of the replica that runs a request: the one with the earliest first token. Pure.

The time to the first token is estimated from what each replica has reported: how long prompts wait
there, how fast it is, and which KV pages it holds. Pages alone never decide: a replica that holds
the whole prompt and has a long queue is later than an idle one that computes the prompt anew.

Reports are some seconds old. What was placed since counts as if the replica had reported it, so
that a burst of requests does not go to one replica. There is no clock here: callers give the
present time of one clock of theirs, and times of other machines are never compared.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from cluster.page_hashes import PAGE_TOKENS, PageHash
from cluster.report import Load, PageChange, PageName, page_name

ASSUMED_PASS_SECONDS = 1.0  # until any replica has run a pass
EQUAL_SHARE = 0.1  # of a pass: a smaller difference is none
STALE_SECONDS = 5.0  # a replica that has not reported for longer gets no requests


@dataclass(frozen=True)
class Prompt:
    """The properties of a request that its placement depends on.

    Args:
        num_tokens: the tokens that have to be stored before the first new one: the prompt, and what
            was emitted of an answer that goes on.
        pages: the hashes of its full pages, in order.
        least_tokens: the prompt and the answer that a replica must have room for.
    """

    num_tokens: int
    pages: Sequence[PageHash] = ()
    least_tokens: int = 0


@dataclass(frozen=True, eq=False)
class Placed:
    """A request that was placed on a replica, until it ends there.

    Args:
        replica: the name of the replica.
        expected_seconds: the estimated time to its first token.
        cached_tokens: tokens that the replica has stored, as far as is known.
    """

    replica: str
    expected_seconds: float
    cached_tokens: int
    placed_at: float
    work_seconds: float  # the time that its prompt takes there
    num_pages: int  # that it needs there, beyond those that are stored
    names: Sequence[PageName]  # of its prompt's pages, which the replica is about to store


@dataclass(eq=False)
class _Replica:
    """What is known of a replica."""

    key: bytes  # under which it names its pages
    distance: float  # seconds that a request takes to it and back
    load: Load | None = None  # None: it has not reported yet
    asked_at: float = 0.0  # the time at which its last report was asked for
    pages: set[PageName] = field(default_factory=set)
    unreported: list[Placed] = field(default_factory=list)  # placed since the last report
    num_ended: int = 0  # requests of the last report that have ended since
    ended_seconds: float = 0.0  # the time that their prompts took
    running: dict[Placed, None] = field(default_factory=dict)  # placed by us, and not ended
    arriving: dict[PageName, int] = field(default_factory=dict)  # pages of `running`, counted

    def count_cached(self, names: Sequence[PageName]) -> int:
        """Return how many of the first pages of a prompt it holds, or is about to.

        A page is dropped before those that it follows, so the number is found by bisection.
        """
        low, high = 0, len(names)
        while low < high:
            middle = (low + high) // 2
            if names[middle] in self.pages or names[middle] in self.arriving:
                low = middle + 1
            else:
                high = middle
        return low


class Placement:
    """The replicas of one model, and the requests that were placed on them."""

    def __init__(self) -> None:
        self._replicas: dict[str, _Replica] = {}

    def add(self, name: str, *, key: bytes = b"", distance: float = 0.0) -> None:
        """Add a replica, or forget what was known of it. It gets requests once it has reported.

        Args:
            key: the key under which it names its pages, from `naming_key`.
            distance: the seconds that a request takes to it and back.
        """
        self._replicas[name] = _Replica(key, distance)

    def remove(self, name: str) -> None:
        """Forget a replica. An unknown name is ignored."""
        self._replicas.pop(name, None)

    def report(
        self,
        name: str,
        load: Load,
        change: PageChange,
        asked_at: float,
        distance: float | None = None,
    ) -> None:
        """Note the report of a replica. One of a replica that was never added is ignored.

        Args:
            asked_at: the time at which the report was asked for: what was placed later is not in
                it.
        """
        replica = self._replicas.get(name)
        if replica is None:
            return
        replica.load, replica.asked_at = load, asked_at
        if distance is not None:
            replica.distance = distance
        change.apply(replica.pages)
        replica.num_ended, replica.ended_seconds = 0, 0.0
        replica.unreported = [own for own in replica.unreported if own.placed_at >= asked_at]

    def place(
        self, prompt: Prompt, now: float, is_allowed: Callable[[str], bool] = lambda _: True
    ) -> Placed | None:
        """Choose the replica with the earliest first token, and count the request there.

        Return None where no replica can take it. Replicas with too few free pages are taken only
        where no other has enough; those whose reports are stale, or that the request does not fit
        at all, are never taken.

        Args:
            now: the present time, of the clock of `asked_at`.
            is_allowed: whether a replica with this name may run the request.
        """
        known = [own.load for own in self._replicas.values() if own.load and own.load.pass_seconds]
        fastest = min(known, key=lambda load: load.pass_seconds, default=None)
        keys = {own.key for own in self._replicas.values()}
        named = {key: [page_name(page, key) for page in prompt.pages] for key in keys}
        offers = [
            offer
            for name, replica in self._replicas.items()
            if is_allowed(name)
            and (offer := _offer(name, replica, prompt, named[replica.key], now, fastest))
            is not None
        ]
        if not offers:
            return None
        best = _with_pages(min(offers), offers, prompt)
        replica = self._replicas[best.name]
        names = named[replica.key]
        placed = Placed(
            best.name, best.seconds, best.cached, now, best.work_seconds, best.num_pages, names
        )
        replica.unreported.append(placed)
        replica.running[placed] = None
        for page in names:
            replica.arriving[page] = replica.arriving.get(page, 0) + 1
        return placed

    def end(self, placed: Placed, *, is_stored: bool = True) -> None:
        """Note that a request has ended, or has left its replica. A second call changes nothing.

        Args:
            is_stored: whether the replica has computed its prompt, so that it may hold the pages.
        """
        replica = self._replicas.get(placed.replica)
        if replica is None or placed not in replica.running:
            return
        del replica.running[placed]
        for name in placed.names:
            replica.arriving[name] -= 1
            if not replica.arriving[name]:
                del replica.arriving[name]
        if is_stored:  # the next report corrects it
            replica.pages.update(placed.names)
        if placed in replica.unreported:
            replica.unreported.remove(placed)
        else:
            replica.num_ended += 1
            replica.ended_seconds += placed.work_seconds

    def num_placed(self, name: str) -> int:
        """Return how many requests were placed on a replica and have not ended."""
        replica = self._replicas.get(name)
        return 0 if replica is None else len(replica.running)

    def num_pages(self, name: str) -> int:
        """Return how many pages a replica is known to hold."""
        replica = self._replicas.get(name)
        return 0 if replica is None else len(replica.pages)


class _Offer(NamedTuple):
    """What a replica can offer to a request. The least offer is the best one."""

    is_short: bool  # of free pages
    seconds: float  # to the first token
    busy: int  # sequences that it has
    name: str
    cached: int  # tokens that it has stored
    work_seconds: float
    num_pages: int
    pass_seconds: float


def _with_pages(best: _Offer, offers: Sequence[_Offer], prompt: Prompt) -> _Offer:
    """Return the offer with the most of the prompt among those hardly later than the best one.

    The first token comes at the end of a pass, so a difference of less than a pass is none that an
    estimate can tell. Then pages that hold most of the prompt decide: they spare all others work. A
    beginning that many prompts share is less, and decides nothing. Otherwise the replica with the
    fewest sequences is taken of those that are equally early.
    """
    fitting = [own for own in offers if own.is_short == best.is_short]
    near = [
        own
        for own in fitting
        if own.seconds < best.seconds + best.pass_seconds and 2 * own.cached >= prompt.num_tokens
    ]
    if near:
        return max(near, key=lambda own: (own.cached, -own.seconds))
    latest = best.seconds + EQUAL_SHARE * best.pass_seconds
    equal = [own for own in fitting if own.seconds <= latest]
    return min(equal, key=lambda own: (own.busy, own.seconds, own.name))


def _offer(
    name: str,
    replica: _Replica,
    prompt: Prompt,
    pages: Sequence[PageName],
    now: float,
    fastest: Load | None,
) -> _Offer | None:
    """Return the offer of a replica; None if it cannot run the request, or is not heard of.

    Args:
        pages: those of the prompt, as the replica names them.
        fastest: the load of the fastest replica. One that has run no pass yet counts as fast.
    """
    load = replica.load
    if load is None or now - replica.asked_at > STALE_SECONDS or prompt.least_tokens > load.longest:
        return None
    if not load.pass_seconds:
        load = replace(
            load,
            pass_seconds=fastest.pass_seconds if fastest else ASSUMED_PASS_SECONDS,
            row_seconds=fastest.row_seconds if fastest else 0.0,
            turn_seconds=fastest.turn_seconds if fastest else ASSUMED_PASS_SECONDS,
        )
    count = replica.count_cached(pages)
    cached = min(count * PAGE_TOKENS, prompt.num_tokens - 1)  # the last token always runs
    work = (prompt.num_tokens - cached) * load.row_seconds
    left = max(0.0, load.prompt_seconds - replica.ended_seconds)
    ahead = left + sum(own.work_seconds for own in replica.unreported)
    busy = max(load.sequences - replica.num_ended, 0) + len(replica.unreported)
    # A request joins the next pass, and the one that runs is half over on average.
    joining = load.pass_seconds / 2 if busy else 0.0
    turn = load.turn_seconds * max(0, busy + 1 - load.max_sequences)
    seconds = replica.distance + joining + turn + max(load.pass_seconds, ahead + work)
    needed = -(-prompt.num_tokens // PAGE_TOKENS) - count
    free = load.free_pages - sum(own.num_pages for own in replica.unreported)
    return _Offer(needed > free, seconds, busy, name, cached, work, needed, load.pass_seconds)
