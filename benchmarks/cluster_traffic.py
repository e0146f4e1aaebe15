"""Sessions on many simulated replicas that die, come back and are upgraded."""

import heapq
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Protocol

from benchmarks.cluster_sessions import SessionPlan
from benchmarks.simulated_replicas import Replica, Session, Speeds, Turn

RESTART_SECONDS = 60.0
DRAIN_SECONDS = 30.0  # that a replica's requests have before they move
UPGRADED_AT_ONCE = 0.05  # share of the replicas


@dataclass(frozen=True)
class Scenario:
    """What happens in a simulation. Times are in seconds.

    Args:
        seconds: when it ends.
        warm_up: requests that arrive before are not measured.
        report_seconds: between two reports of a replica.
        mean_life: of a replica until it dies; 0: none dies.
        upgrade_at: when a rolling upgrade begins; None: there is none.
        way_seconds: from a client to the engine.
    """

    replicas: int
    seconds: float
    warm_up: float = 0.0
    report_seconds: float = 1.0
    mean_life: float = 3600.0
    upgrade_at: float | None = None
    way_seconds: float = 0.0
    seed: int = 1


@dataclass
class Outcome:
    """What was measured."""

    first_token: list[float] = field(default_factory=list)  # seconds
    pauses: list[float] = field(default_factory=list)  # seconds, of streams that moved
    rates: list[float] = field(default_factory=list)  # tokens a second of an answer
    moved: int = 0
    lost: int = 0  # streams that no replica of their version was left for
    cached_tokens: int = 0
    prompt_tokens: int = 0
    later_turns: int = 0  # turns after the first one of their session
    returned: int = 0  # of them those that began where the turn before had ended
    choice_seconds: list[float] = field(default_factory=list, compare=False)  # of this computer

    def note_first_token(self, turn: Turn, now: float) -> None:
        """Count a request whose first token came just now."""
        session = turn.session
        self.first_token.append(now - turn.arrived)
        self.cached_tokens += turn.cached
        self.prompt_tokens += session.tokens - turn.emitted
        if session.ran_at is not None:
            self.later_turns += 1
            self.returned += turn.ran_at == session.ran_at


class Policy(Protocol):
    """A way to choose the replica of each request.

    The simulation calls it with every event that a router in front of the replicas would see.
    """

    def choose(self, turn: Turn, names: Sequence[int], now: float) -> int | None:
        """Return one of the replicas `names`, or None to try again later."""

    def leave(self, turn: Turn) -> None:
        """Note that a request has ended, or has left its replica."""

    def report(self, name: int, replica: Replica, now: float) -> None:
        """Receive the report of a replica."""

    def forget(self, name: int) -> None:
        """Note that a replica has died, or restarts with nothing stored."""


def simulate(
    scenario: Scenario, sessions: Iterable[SessionPlan], speeds: Speeds, policy: Policy
) -> Outcome:
    """Run a scenario with these sessions, which are in order, and return what was measured."""
    run = _Run(scenario, sessions, speeds, policy)
    run.start()
    while run.now <= scenario.seconds and run.events:
        run.step()
    return run.outcome


class _Run:
    """One simulation, as a queue of events."""

    def __init__(
        self,
        scenario: Scenario,
        sessions: Iterable[SessionPlan],
        speeds: Speeds,
        policy: Policy,
    ) -> None:
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.now = 0.0
        self.outcome = Outcome()
        self._scenario, self._policy = scenario, policy
        self._sessions = iter(sessions)
        passes = Random(scenario.seed + 1)  # so that all policies get the same traffic
        self._failures = Random(scenario.seed + 2)
        self._replicas = [Replica(speeds, passes) for _ in range(scenario.replicas)]
        self._num_events = 0

    def start(self) -> None:
        """Schedule the first events."""
        scenario = self._scenario
        for name in range(scenario.replicas):
            self._policy.forget(name)
            self._at(
                scenario.report_seconds * name / scenario.replicas, partial(self._report, name)
            )
            if scenario.mean_life:
                self._at(self._life(), partial(self._die, name))
        if scenario.upgrade_at is not None:
            self._at(scenario.upgrade_at, lambda: self._upgrade(0))
        self._await_session()

    def step(self) -> None:
        """Let the next event happen."""
        self.now, _, event = heapq.heappop(self.events)
        event()

    def _at(self, when: float, event: Callable[[], None]) -> None:
        self._num_events += 1
        heapq.heappush(self.events, (when, self._num_events, event))

    def _life(self) -> float:
        return self._failures.expovariate(1 / self._scenario.mean_life)

    # -- sessions

    def _await_session(self) -> None:
        """Schedule the next session."""
        plan = next(self._sessions, None)
        if plan is not None:
            self._at(plan.begins, lambda: self._begin_session(Session(plan)))

    def _begin_session(self, session: Session) -> None:
        self._await_session()
        self._begin_turn(session)

    def _begin_turn(self, session: Session) -> None:
        if session.turns:
            turn = Turn(session, session.begin_turn(), self.now)
            self._at(self.now + self._scenario.way_seconds, lambda: self._submit(turn))

    def _submit(self, turn: Turn) -> None:
        """Place a request, or the rest of a stream."""
        open_ = [n for n, own in enumerate(self._replicas) if own.takes_requests]
        if turn.version is not None:
            open_ = [n for n in open_ if self._replicas[n].version == turn.version]
            if not any(own.is_up and own.version == turn.version for own in self._replicas):
                self.outcome.lost += 1
                return
        began = time.perf_counter()
        name = self._policy.choose(turn, open_, self.now) if open_ else None
        self.outcome.choice_seconds.append(time.perf_counter() - began)
        if name is None:
            self._at(self.now + self._scenario.report_seconds, lambda: self._submit(turn))
            return
        self._replicas[name].add(turn)
        turn.ran_at = name
        self._run_pass(name)

    def _is_measured(self, turn: Turn) -> bool:
        return turn.arrived >= self._scenario.warm_up

    # -- replicas

    def _run_pass(self, name: int) -> None:
        replica = self._replicas[name]
        if replica.is_busy or not replica.is_up:
            return
        seconds = replica.begin_pass()
        if seconds is not None:
            generation = replica.generation
            self._at(self.now + seconds, lambda: self._end_pass(name, generation))

    def _end_pass(self, name: int, generation: int) -> None:
        replica = self._replicas[name]
        if replica.generation != generation:
            return
        passed = replica.end_pass()
        for turn in passed.began:
            self._note_token(turn)
        for turn in passed.ended:
            self._policy.leave(turn)
            self._note_end(turn)
        self._run_pass(name)

    def _note_token(self, turn: Turn) -> None:
        """Measure the first token of a request on its replica."""
        is_measured = self._is_measured(turn)
        if turn.lost is not None:
            if is_measured:
                self.outcome.pauses.append(self.now - turn.lost)
            turn.lost = None
        if turn.began is None:
            turn.began = self.now
            if is_measured:
                self.outcome.note_first_token(turn, self.now)

    def _note_end(self, turn: Turn) -> None:
        session = turn.session
        session.ran_at = turn.ran_at
        if turn.began is not None and self.now > turn.began and self._is_measured(turn):
            self.outcome.rates.append(turn.emitted / (self.now - turn.began))
        if session.turns:
            self._at(self.now + session.turns[0].pause, lambda: self._begin_turn(session))

    def _report(self, name: int) -> None:
        replica = self._replicas[name]
        if replica.takes_requests:
            self._policy.report(name, replica, self.now)
        self._at(self.now + self._scenario.report_seconds, lambda: self._report(name))

    def _die(self, name: int) -> None:
        self._at(self.now + RESTART_SECONDS + self._life(), lambda: self._die(name))
        if self._replicas[name].is_up:
            self._stop(name)
            version = self._replicas[name].version
            self._at(self.now + RESTART_SECONDS, lambda: self._restart(name, version))

    def _stop(self, name: int) -> None:
        """End a replica. Its requests go on elsewhere."""
        replica = self._replicas[name]
        replica.stop()
        self._policy.forget(name)
        for turn in replica.take_all():
            self._policy.leave(turn)
            if turn.began is not None:
                turn.lost = self.now
                self.outcome.moved += 1
            self._submit(turn)

    def _restart(self, name: int, version: int) -> None:
        replica = self._replicas[name]
        replica.restart(max(version, replica.version))
        self._policy.forget(name)

    def _upgrade(self, first: int) -> None:
        """Drain the next replicas of a rolling upgrade, which restart with another version."""
        count = max(1, int(UPGRADED_AT_ONCE * len(self._replicas)))
        names = range(first, min(first + count, len(self._replicas)))
        for name in names:
            self._replicas[name].takes_requests = False
            self._policy.forget(name)

        def end() -> None:
            for name in names:
                if self._replicas[name].is_up:
                    self._stop(name)
                self._at(self.now + RESTART_SECONDS, partial(self._restart, name, 1))

        self._at(self.now + DRAIN_SECONDS, end)
        if names.stop < len(self._replicas):
            next_at = self.now + DRAIN_SECONDS + RESTART_SECONDS
            self._at(next_at, lambda: self._upgrade(names.stop))
