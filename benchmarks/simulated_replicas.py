"""Replicas of a model that are simulated pass by pass, with the speeds of a plan."""

from collections import OrderedDict, deque
from dataclasses import dataclass, field
from random import Random

from cluster.page_hashes import PAGE_TOKENS
from cluster.report import Load, PageChange, PageName
from engine.spec import TILE
from engine.timing import StepTimes, smoothed

MAX_SLOWDOWN = 1.25  # the longest pass with prompt rows, relative to one without
TEMPLATE_PAGES = 32  # of a system prompt that sessions share
SPREAD = 0.4  # the standard deviation of the tokens a pass, relative to their mean
TURN_SMOOTHING = 0.2


@dataclass(frozen=True)
class Speeds:
    """The speeds and sizes of a plan."""

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

    @property
    def row_seconds(self) -> float:
        """The seconds that a further row of a long prompt takes."""
        most = self.max_rows
        return ((self.rows.expect(most) or 0.0) - (self.rows.expect(TILE) or 0.0)) / (most - TILE)

    @property
    def shortest_pass(self) -> float:
        """The seconds of a pass in which the link hides what is computed."""
        return self.link_seconds + self.host_seconds

    def pass_seconds(self, rows: int, pairs: float) -> float:
        """Return the seconds of a pass of `rows` rows that attend to `pairs` tokens in all."""
        padded = -(-rows // TILE) * TILE
        computing = (self.rows.expect(padded) or 0.0) + pairs * self.pair_seconds
        return max(self.link_seconds, computing) + self.host_seconds


@dataclass(eq=False)
class Session:
    """A conversation, which shares a system prompt with others."""

    number: int
    template: int
    turns_left: int
    tokens: int = TEMPLATE_PAGES * PAGE_TOKENS
    _pages: list[PageName] = field(default_factory=list)

    def pages(self, tokens: int) -> list[PageName]:
        """Return the names of the full pages of the first tokens."""
        for number in range(len(self._pages), tokens // PAGE_TOKENS):
            of = f"t{self.template}" if number < TEMPLATE_PAGES else f"s{self.number}"
            self._pages.append(f"{of}.{number}".encode())
        return self._pages[: tokens // PAGE_TOKENS]


@dataclass(eq=False)
class Turn:
    """A request: one turn of a session."""

    session: Session
    arrived: float
    tokens_left: int  # of the answer
    random: Random  # of its session
    rows_left: int = 0  # of the prompt, and of what was emitted elsewhere
    began: float | None = None  # when its first token came
    lost: float | None = None  # when its replica died or was drained
    emitted: int = 0
    version: int | None = None  # of the replica that emitted its first token


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
        self._turn_seconds = 10 * speeds.shortest_pass / speeds.max_sequences
        self._last_end: float | None = None

    @property
    def num_requests(self) -> int:
        """The number of requests that it has."""
        return len(self.running) + len(self.waiting)

    def num_cached(self, session: Session, tokens: int) -> int:
        """Return how many of the first tokens of a session are stored."""
        shared = self._stored.get(("t", session.template), [])
        own = self._stored.get(("s", session.number), []) if shared else []
        return min((len(shared) + len(own)) * PAGE_TOKENS, tokens - 1)

    def add(self, turn: Turn) -> int:
        """Queue a request, and return how many of its tokens are stored."""
        tokens = turn.session.tokens
        cached = self.num_cached(turn.session, tokens)
        turn.rows_left = tokens - cached
        self.waiting.append(turn)
        return cached

    def begin_pass(self) -> float | None:
        """Begin a pass, and return its seconds; None if there is nothing to do."""
        while self.waiting and len(self.running) < self.speeds.max_sequences:
            self.running.append(self.waiting.popleft())
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
        return self.speeds.pass_seconds(rows, pairs)

    def _prompt_budget(self, rows: int, pairs: float) -> int:
        """Return the prompt rows that may join decoding sequences without slowing them much."""
        alone = self.speeds.pass_seconds(rows, pairs)
        room = MAX_SLOWDOWN * alone - self.speeds.host_seconds - pairs * self.speeds.pair_seconds
        spare = room - (self.speeds.rows.expect(rows) or 0.0)
        return max(TILE, int(spare / self.speeds.row_seconds))

    def end_pass(self, now: float) -> Passed:
        """Emit the tokens of the pass that began last."""
        self.is_busy = False
        passed = Passed()
        mean = self.speeds.tokens_per_pass
        for turn in list(self.running):
            if turn.rows_left:
                continue
            if turn.version is None or turn.lost is not None or turn.emitted == 0:
                passed.began.append(turn)
                turn.version = self.version
                self._store(turn.session)
            run = max(1, round(self._random.gauss(mean, mean * SPREAD)))
            run = min(turn.tokens_left, run if turn.emitted else 1)
            turn.tokens_left -= run
            turn.emitted += run
            turn.session.tokens += run
            if not turn.tokens_left:
                self.running.remove(turn)
                passed.ended.append(turn)
                self._store(turn.session)
                self._note_end(now)
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
        return Load(
            prompt_seconds=pending * speeds.row_seconds,
            sequences=self.num_requests,
            max_sequences=speeds.max_sequences,
            turn_seconds=self._turn_seconds,
            free_pages=max(0, speeds.pages - used),
            pass_seconds=speeds.shortest_pass,
            row_seconds=speeds.row_seconds,
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

    def _note_end(self, now: float) -> None:
        if self._last_end is not None and self.waiting:
            self._turn_seconds = smoothed(self._turn_seconds, now - self._last_end, TURN_SMOOTHING)
        self._last_end = now

    def _store(self, session: Session) -> None:
        """Store the full pages of a session, and drop the texts that were not used for longest."""
        pages = session.pages(session.tokens)
        self._put(("s", session.number), pages[TEMPLATE_PAGES:])
        self._put(("t", session.template), pages[:TEMPLATE_PAGES])
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
