"""A piece: a server is broken and used by clients in four acts, and rests after each."""

import asyncio
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from benchmarks.hostile_clients.hostile_swarm import Sent, hostile_swarm
from benchmarks.hostile_clients.process_memory import (
    read_proportional_bytes,
    read_resident_bytes,
)
from benchmarks.hostile_clients.witnesses import find_faults, measure_pages
from tests.chaos.accounts import (
    MEMORY,
    SHARED_MEMORY,
    Account,
    find_kv_excess,
    find_leaks,
    find_steady_leaks,
    growths,
    steady_growth,
    take_account,
)
from tests.chaos.faults import Faults
from tests.chaos.processes import find_processes
from tests.chaos.schedule import KINDS, Act, make_acts
from tests.chaos.stage import IDLE_UNLOAD_S, KV_DISK_BYTES, MODELS, Stage, staged
from tests.chaos.witnesses import (
    Attempt,
    Known,
    Witness,
    ask_plainly,
    choose_questions,
    fault_of,
    record,
)

WITNESSES = 5
HOSTILE = 6
RECOVERED = 5  # questions whose right answers show that the server has recovered
PLAIN_S = 90.0  # of plain requests, between which memory is measured,
PLAIN_BATCH = 100  # and so many between two accounts
PLAIN_REST_S = 4.0  # in which the engine gives back what its allocator has kept
OVERHEAD_S = 190.0 + PLAIN_S  # of a piece, for its quiet run, its rests and plain requests
LEAST_SHARE = 0.3  # of a piece, for its acts
MOST_UNLOADED_BYTES = 300_000_000  # of a server without a model
SHOWN = 12  # failures of one act that are kept
TRACEBACK = re.compile(r"^Traceback \(most recent call last\):\n(?:[ \t].*\n|\n)*(\S.*)$", re.M)


@dataclass
class Record:
    """What one piece has found."""

    seed: int
    minutes: float
    model: str = ""
    load: float = 0.0
    seconds: float = 0.0
    requests: int = 0  # of witnesses and hostile clients
    verdicts: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)  # of the errors that witnesses got
    steps: Counter[str] = field(default_factory=Counter)
    struck: dict[str, int] = field(default_factory=dict)  # calls of the server that were struck
    growths: list[tuple[str, int, float]] = field(default_factory=list)
    unloaded_mb: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    tracebacks: Counter[str] = field(default_factory=Counter)  # in the log, by their last lines

    def line(self) -> dict[str, Any]:
        """Return it as an object of JSON."""
        return {
            name: dict(own) if isinstance(own, Counter) else own for name, own in vars(self).items()
        }


def play(
    seed: int,
    seconds: float,
    only: int | None = None,
    act_seconds: float | None = None,
    kinds: Sequence[str] = tuple(KINDS),
    say: Callable[[str], None] = lambda _: None,
    logs: Path | None = None,
) -> Record:
    """Play a piece, and return what it has found.

    Args:
        only: the number of the only act that is played.
        act_seconds: of all acts together; None: what is left of `seconds`.
        kinds: the kinds of steps that are used.
        say: is called with lines about the progress.
        logs: the folder that gets the server's logs.
    """
    began = time.monotonic()
    if act_seconds is None:
        act_seconds = max(seconds - OVERHEAD_S, LEAST_SHARE * seconds)
    acts = make_acts(seed, act_seconds, MODELS, kinds)
    record_ = Record(seed, seconds / 60, acts[0].model)
    with (
        tempfile.TemporaryDirectory(prefix="understudy-chaos-") as place,
        staged(Path(place), acts[0].model, seed) as stage,
    ):
        record_.skipped += stage.skipped
        try:
            _Piece(stage, seed, record_, say).run(acts if only is None else [acts[only]])
        finally:
            _keep_logs(stage, logs)
        record_.tracebacks = find_tracebacks(stage.logs)
        if stage.shim is not None:
            record_.struck = stage.shim.counts
    record_.seconds, record_.load = time.monotonic() - began, os.getloadavg()[1]
    return record_


class _Piece:
    """The acts of a piece, on one stage."""

    def __init__(
        self, stage: Stage, seed: int, record_: Record, say: Callable[[str], None]
    ) -> None:
        self._stage = stage
        self._seed = seed
        self._record = record_
        self._say = say
        self._accounts: list[Account] = []
        self._accounts_of_plain: list[Account] = []
        self._known: Known = {}
        self._url = f"http://127.0.0.1:{stage.demo.address.port}/v1"
        self._quiet_pages = 0.0

    def run(self, acts: Sequence[Act]) -> None:
        """Record the right answers, and play all acts."""
        asked = choose_questions(self._seed)
        began = time.monotonic()
        self._known = asyncio.run(record(self._url, acts[0].model, asked, WITNESSES))
        self._quiet_pages = measure_pages(self._stage.demo.address)
        self._say(f"{len(asked)} answers of a quiet server in {time.monotonic() - began:.0f} s")
        for act in acts:
            self._play(act)
        self._record.leaks += map(str, find_leaks(self._accounts))
        self._record.leaks += map(str, find_steady_leaks(self._accounts_of_plain))
        self._record.growths = growths(self._accounts)
        for what in MEMORY:
            slope = steady_growth(self._accounts_of_plain, what)
            if slope is not None:
                self._record.growths.append((what, 1000, 1000 * slope))

    def _play(self, act: Act) -> None:
        began = time.monotonic()
        own: list[str] = []
        port = self._stage.demo.address.port
        with hostile_swarm(port, self._seed * 10 + act.number, HOSTILE, act.seconds) as sent:
            asyncio.run(self._act(act, own))
        self._count(sent)
        own += asyncio.run(self._recover(act))
        own += [f"resting: {fault}" for fault in find_faults(self._stage.demo, self._quiet_pages)]
        own += find_kv_excess(self._stage.disk / "cache", KV_DISK_BYTES)
        self._account()
        if act.is_calm and not self._accounts_of_plain:
            self._load_plainly()
        if act.unloads:
            own += self._await_unload()
        place = f"seed {self._seed}, act {act.number}"
        self._record.failures += [f"{place}: {failure}" for failure in own[:SHOWN]]
        if len(own) > SHOWN:
            self._record.failures += [f"{place}: a further failure"] * (len(own) - SHOWN)
        for failure in own[:SHOWN]:
            self._say(f"  {failure}")
        self._say(
            f"{place} ({act.model}): {len(act.steps)} steps in {time.monotonic() - began:.0f} s, "
            f"{dict(self._record.verdicts)}, {len(own)} failures"
        )

    async def _act(self, act: Act, own: list[str]) -> None:
        faults = Faults(self._stage, act.model)
        began = time.monotonic()
        witnesses = [
            Witness(self._url, self._known, lambda: faults.model, Random(f"{self._seed} {n}"))
            for n in range(WITNESSES)
        ]
        watching = asyncio.create_task(faults.watch())
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(faults.run(act.steps, began))
                for witness in witnesses:
                    group.create_task(witness.run(began + act.seconds))
        finally:
            watching.cancel()
            if self._stage.shim is not None:
                self._stage.shim.strike({})
        attempts = [attempt for witness in witnesses for attempt in witness.attempts]
        self._count_attempts(attempts)
        self._record.steps.update(window.kind for window in faults.windows)
        self._record.skipped += faults.skipped
        own += faults.failures
        own += [fault for attempt in attempts if (fault := fault_of(attempt, faults.windows))]

    async def _recover(self, act: Act) -> list[str]:
        """Return what is wrong with the answers after all faults have ended."""
        if not self._stage.is_running:
            return ["the server does not run"]
        witness = Witness(self._url, self._known, lambda: act.model, Random(self._seed))
        fault = await witness.recover(act.model, RECOVERED)
        self._count_attempts(witness.attempts)
        return [fault] if fault else []

    def _count(self, sent: Sent) -> None:
        self._record.requests += sent.requests

    def _count_attempts(self, attempts: Sequence[Attempt]) -> None:
        self._record.requests += len(attempts)
        self._record.verdicts.update(attempt.verdict for attempt in attempts)
        refused = [attempt for attempt in attempts if attempt.verdict == "refused"]
        self._record.codes.update(attempt.code for attempt in refused)

    def _load_plainly(self) -> None:
        """Send plain requests for some time, and take an account after each hundred."""
        until, sent = time.monotonic() + PLAIN_S, 0
        while time.monotonic() < until:
            sent += asyncio.run(ask_plainly(self._url, sent, PLAIN_BATCH, WITNESSES))
            time.sleep(PLAIN_REST_S)
            pid = self._stage.demo.address.pid
            self._accounts_of_plain.append(take_account(pid, sent, {}))
        self._record.requests += sent

    def _account(self) -> None:
        folders = {name: self._stage.disk / name for name in ("cache", "tmp", "state")}
        folders["shared memory"] = SHARED_MEMORY
        pid = self._stage.demo.address.pid
        self._accounts.append(take_account(pid, self._record.requests, folders))

    def _await_unload(self) -> list[str]:
        """Wait until the model is unloaded, and return what is wrong with a server without one."""
        until = time.monotonic() + 2 * IDLE_UNLOAD_S + 10.0
        pid = self._stage.demo.address.pid
        while find_processes(pid).engine is not None:
            if time.monotonic() > until:
                return ["the model was not unloaded after its idle time"]
            time.sleep(0.5)
        time.sleep(2.0)
        others = [other for other in find_processes(pid).all if other != pid]
        held = read_resident_bytes(pid) + sum(map(read_proportional_bytes, others))
        self._record.unloaded_mb.append(round(held / 1e6))
        if held > MOST_UNLOADED_BYTES:
            return [f"a server without a model holds {held / 1e6:.0f} MB"]
        with suppress(httpx.HTTPError):
            if httpx.get(f"{self._url}/models").status_code == httpx.codes.OK:
                return []
        return ["a server without a model does not answer"]


def find_tracebacks(logs: Path) -> Counter[str]:
    """Return how many tracebacks the logs have, by their last lines."""
    found: Counter[str] = Counter()
    for path in sorted(logs.glob("*.log")):
        for match in TRACEBACK.finditer(path.read_text(errors="replace")):
            found[match[1][:200]] += 1
    return found


def _keep_logs(stage: Stage, logs: Path | None) -> None:
    if logs is not None:
        logs.mkdir(parents=True, exist_ok=True)
        for path in stage.logs.glob("*.log"):
            (logs / path.name).write_bytes(path.read_bytes())
