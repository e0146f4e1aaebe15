"""Replicas of a model that are simulated pass by pass, with the speeds of a plan or of a run."""

from bisect import bisect_right
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from random import Random

from benchmarks.cluster_sessions import SessionPlan, TurnPlan
from cluster.page_hashes import PAGE_TOKENS
from cluster.pass_speeds import PassSpeeds
from cluster.report import Load, PageChange, PageName
from cluster.reporting import load_with
from engine.sequences.scheduler import PLANNED_SLOWDOWN
from engine.spec import TILE
from engine.timing import StepTimes

SPREAD = 0.4  # the standard deviation of the drafted tokens of a pass, relative to their mean


@dataclass(frozen=True)
class Speeds:
    """The speeds and sizes of a replica."""

    link_seconds: float  # in which the weights of a pass travel
    host_seconds: float  # of a pass, beside everything else
    rows: StepTimes  # seconds of a pass by its rows
    pair_seconds: float  # of attention, for a row and a token that it attends to
    tree_rows: int
    tokens_per_pass: float
    max_sequences: int
    max_rows: int
    pages: int  # KV pages, those in host memory included
    longest: int  # tokens of a prompt and its answer

    def computing_seconds(self, rows: int, pairs: float) -> float:
        """Return the seconds in which `rows` rows are computed that attend to `pairs` tokens."""
        padded = -(-rows // TILE) * TILE
        return (self.rows.expect(padded) or 0.0) + pairs * self.pair_seconds

    def pass_seconds(self, rows: int, pairs: float) -> float:
        """Return the seconds of a pass of `rows` rows that attend to `pairs` tokens in all."""
        return max(self.link_seconds, self.computing_seconds(rows, pairs)) + self.host_seconds


@dataclass(eq=False)
class Session:
    """A session, as far as it has come.

    Attributes:
        tokens: its text so far.
        turns: those that are still to come.
        ran_at: the replica where its last turn ended.
    """

    plan: SessionPlan
    ran_at: int | None = None
    _pages: list[PageName] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.tokens = self.plan.template_tokens
        self.turns = deque(self.plan.turns)

    @property
    def template_pages(self) -> int:
        """The pages that it shares with other sessions."""
        return self.plan.template_tokens // PAGE_TOKENS

    def begin_turn(self) -> int:
        """Add what the next turn adds to the prompt. Return the tokens of its answer."""
        turn: TurnPlan = self.turns.popleft()
        self.tokens += turn.added
        return turn.answer

    def pages(self, tokens: int) -> list[PageName]:
        """Return the names of the full pages of the first tokens."""
        for number in range(len(self._pages), tokens // PAGE_TOKENS):
            is_shared = number < self.template_pages
            of = f"t{self.plan.template}" if is_shared else f"s{self.plan.number}"
            self._pages.append(f"{of}.{number}".encode())
        return self._pages[: tokens // PAGE_TOKENS]


@dataclass(eq=False)
class Turn:
    """A request: one turn of a session."""

    session: Session
    tokens_left: int  # of the answer
    arrived: float
    rows_left: int = 0  # of the prompt, and of what was emitted elsewhere
    cached: int = 0  # tokens that its replica had stored when it began to run there
    began: float | None = None  # when its first token came
    lost: float | None = None  # when its replica died or was drained
    emitted: int = 0
    version: int | None = None  # of the replica that emitted its first token
    ran_at: int | None = None  # the replica where it was placed last


@dataclass
class Passed:
    """What has happened in a pass."""

    began: list[Turn] = field(default_factory=list)  # those that emitted for the first time here
    ended: list[Turn] = field(default_factory=list)


class Replica:
    """One replica: its requests, and the texts whose KV it has stored."""

    def __init__(self, speeds: Speeds, random: Random) -> None:
        self.speeds = speeds
        self.version = 0
        self.is_up = True
        self.takes_requests = True
        self.generation = 0  # changes with each death, so that passes of before do not count
        self.is_busy = False
        self.running: list[Turn] = []
        self.waiting: deque[Turn] = deque()
        self._random = random
        self._stored: OrderedDict[tuple[str, int], list[PageName]] = OrderedDict()
        self._num_stored = 0
        self._change = PageChange(is_whole=True)
        self._added: set[PageName] = set()
        self._dropped: set[PageName] = set()
        self._shown = PassSpeeds()  # as an engine learns them

    @property
    def num_requests(self) -> int:
        """The number of requests that it has."""
        return len(self.running) + len(self.waiting)

    def num_cached(self, session: Session, tokens: int) -> int:
        """Return how many of the first tokens of a session are stored."""
        shared = self._stored.get(("t", session.plan.template), [])
        own = self._stored.get(("s", session.plan.number), []) if shared else []
        return min((len(shared) + len(own)) * PAGE_TOKENS, tokens - 1)

    def add(self, turn: Turn) -> None:
        """Queue a request."""
        turn.rows_left = turn.session.tokens
        self.waiting.append(turn)

    def begin_pass(self) -> float | None:
        """Begin a pass, and return its seconds; None if there is nothing to do."""
        while self.waiting and len(self.running) < self.speeds.max_sequences:
            turn = self.waiting.popleft()
            turn.cached = self.num_cached(turn.session, turn.session.tokens)
            turn.rows_left -= turn.cached
            self.running.append(turn)
        if not self.running:
            return None
        self.is_busy = True
        decoding = [turn for turn in self.running if not turn.rows_left]
        rows = len(decoding) * self.speeds.tree_rows
        pairs = float(sum(turn.session.tokens for turn in decoding) * self.speeds.tree_rows)
        budget = self._prompt_budget(rows, pairs) if decoding else self.speeds.max_rows
        for turn in self.running:
            if turn.rows_left and budget > 0:
                run = min(turn.rows_left, budget)
                turn.rows_left -= run
                budget -= run
                rows += run
                pairs += run * (turn.session.tokens - turn.rows_left - run / 2)
        seconds = self.speeds.pass_seconds(rows, pairs)
        computing = self.speeds.host_seconds + self.speeds.computing_seconds(rows, pairs)
        self._shown.observe(rows, seconds, waited=seconds - computing)
        return seconds

    def _prompt_budget(self, rows: int, pairs: float) -> int:
        """Return the prompt rows that may join decoding sequences, as the scheduler chooses them.

        They hardly slow these down: see `engine.sequences.scheduler.PrefillBudget`.
        """
        allowed = PLANNED_SLOWDOWN * self.speeds.pass_seconds(rows, pairs)
        context = max(own.session.tokens - own.rows_left for own in self.running)

        def expected(added: int) -> float:
            return self.speeds.pass_seconds(rows + added, pairs + added * (context + added / 2))

        more = range(2 * TILE, self.speeds.max_rows + 1, TILE)
        return TILE * (1 + bisect_right(more, allowed, key=expected))

    def end_pass(self) -> Passed:
        """Emit the tokens of the pass that began last."""
        self.is_busy = False
        passed = Passed()
        drafted = self.speeds.tokens_per_pass - 1
        for turn in list(self.running):
            if turn.rows_left:
                continue
            if turn.version is None or turn.lost is not None or turn.emitted == 0:
                passed.began.append(turn)
                turn.version = self.version
                self._store(turn.session)
            run = 1 + max(0, round(self._random.gauss(drafted, drafted * SPREAD)))
            run = min(turn.tokens_left, run if turn.emitted else 1)
            turn.tokens_left -= run
            turn.emitted += run
            turn.session.tokens += run
            if not turn.tokens_left:
                self.running.remove(turn)
                passed.ended.append(turn)
                self._store(turn.session)
        return passed

    def take_all(self) -> list[Turn]:
        """Return all requests, which leave the replica."""
        taken = [*self.running, *self.waiting]
        self.running.clear()
        self.waiting.clear()
        return taken

    def restart(self, version: int) -> None:
        """Begin again with nothing stored."""
        self.is_up, self.takes_requests, self.version = True, True, version
        self._stored.clear()
        self._num_stored = 0
        self._added.clear()
        self._dropped.clear()
        self._change = PageChange(is_whole=True)

    def stop(self) -> None:
        """End: the pass that runs is lost."""
        self.is_up = self.takes_requests = self.is_busy = False
        self.generation += 1

    def load(self) -> Load:
        """Return what it reports of its work."""
        speeds = self.speeds
        pending = sum(turn.rows_left for turn in (*self.running, *self.waiting))
        used = sum(turn.session.tokens // PAGE_TOKENS for turn in self.running)
        return load_with(
            self._shown,
            prompt_tokens=pending,
            sequences=self.num_requests,
            max_sequences=speeds.max_sequences,
            free_pages=max(0, speeds.pages - used),
            longest=speeds.longest,
        )

    def take_change(self) -> PageChange:
        """Return how its pages have changed since the last call."""
        change = PageChange(
            frozenset(self._added), frozenset(self._dropped), is_whole=self._change.is_whole
        )
        self._change = PageChange()
        self._added.clear()
        self._dropped.clear()
        return change

    def _store(self, session: Session) -> None:
        """Store the full pages of a session, and drop the texts that were not used for longest."""
        pages, shared = session.pages(session.tokens), session.template_pages
        self._put(("s", session.plan.number), pages[shared:])
        self._put(("t", session.plan.template), pages[:shared])
        while self._num_stored > self.speeds.pages and len(self._stored) > 2:
            _, dropped = self._stored.popitem(last=False)
            self._num_stored -= len(dropped)
            self._added.difference_update(dropped)
            self._dropped.update(dropped)

    def _put(self, key: tuple[str, int], pages: list[PageName]) -> None:
        known = self._stored.pop(key, [])
        fresh = pages[len(known) :]
        self._stored[key] = pages
        self._num_stored += len(fresh)
        self._added.update(fresh)
        self._dropped.difference_update(fresh)
