"""A server whose memory is lowered and raised again while witnesses ask it.

Either its device limit is set by a request, or the limit of its cgroup is set.
"""

import asyncio
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from benchmarks.hostile_clients.served_demo import ServedDemo
from benchmarks.memory_group import MemoryGroup
from tests.chaos.witnesses import Attempt, Witness, choose_questions, record
from tests.demo_server import COMPILED, ROOT

MODEL = "limited"
WITNESSES = 4
LIMIT = 34 << 20  # bytes of device memory, which all of the demo model fits in
LOWERED = 0.8
EVERY_S = 4.0  # from a change of the limit to the next
GROUP_BYTES = 1_200_000_000  # of a server whose KV takes most of it
STEPS = 4
OTHER_BYTES = 250_000_000  # of another program in the group
MARGIN_BYTES = 24_000_000  # that a group may take after its limit was lowered
TIERS = {
    "disk": "",  # the CPU's own memory is the device's: units that leave are read from the disk
    "ram": "stream: {simulate_gbps: 1.0}\n",
}
DRAFTS = {
    "ngram": "draft: {method: ngram}\n",
    "subspec": "draft: {method: subspec, depth: 16, width: 4, branch: 4, calibrate: false}\n",
}


@dataclass
class Found:
    """What the witnesses got, and how the weights moved.

    Args:
        replans: the moves by their reasons.
        resident: the numbers of resident units that were seen.
        held: the bytes of the cgroup before each step and after the last one.
        kills: the processes that the kernel has ended.
        has_other: whether the other program in the cgroup has lived on.
    """

    attempts: list[Attempt] = field(default_factory=list)
    replans: dict[str, float] = field(default_factory=dict)
    resident: Counter[int] = field(default_factory=Counter)
    held: list[int] = field(default_factory=list)
    kills: int = 0
    has_other: bool = False

    @property
    def verdicts(self) -> Counter[str]:
        return Counter(attempt.verdict for attempt in self.attempts)


def change_limits(folder: Path, seconds: float, tier: str, draft: str, seed: int) -> Found:
    """Serve the demo model in `folder` and change its limit for some seconds under load.

    Args:
        tier: where units go that leave the device, one of `TIERS`.
        draft: one of `DRAFTS`.
    """
    text = f"memory: {{device: {LIMIT}}}\n{DRAFTS[draft]}{TIERS[tier]}"
    demo = ServedDemo(folder, 10.0, model=MODEL, environment=_environment(folder, text))
    try:
        return asyncio.run(_change(demo, seconds, seed))
    finally:
        demo.stop()


def lower_group(folder: Path, seconds: float, group: MemoryGroup, seed: int) -> Found:
    """Serve a model with much KV in a cgroup, and lower the group's limit step by step under load.

    Each limit is a little above what the group holds then. At last there is none any more.
    """
    with _served_in(group, folder) as demo:
        return asyncio.run(_lower(demo, seconds, group, seed))


@contextmanager
def _served_in(group: MemoryGroup, folder: Path) -> Iterator[ServedDemo]:
    """Serve a model with much KV in a cgroup whose limit is `GROUP_BYTES`."""
    group.limit(GROUP_BYTES)
    environment = _environment(folder, f"{DRAFTS['ngram']}max_sequences: 4\n", rope=32)
    demo = ServedDemo(folder, 10.0, model=MODEL, environment=environment, group=group)
    try:
        yield demo
    finally:
        group.lift_limit()
        demo.stop()


async def _lower(demo: ServedDemo, seconds: float, group: MemoryGroup, seed: int) -> Found:
    _, witnesses = await _make_witnesses(demo, seed)
    found, until = Found(), time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for witness in witnesses:
            tasks.create_task(witness.run(until))
        for _ in range(STEPS):
            found.held.append(group.anonymous_bytes)
            await _limit_above(group)
            await asyncio.sleep(seconds / (STEPS + 1))
        found.held.append(group.anonymous_bytes)
        group.lift_limit()
    found.kills = group.num_oom_kills
    found.attempts = [attempt for witness in witnesses for attempt in witness.attempts]
    return found


async def _change(demo: ServedDemo, seconds: float, seed: int) -> Found:
    url, witnesses = await _make_witnesses(demo, seed)
    found, until = Found(), time.monotonic() + seconds
    async with asyncio.TaskGroup() as group, httpx.AsyncClient(base_url=url, timeout=60) as client:
        tasks = [group.create_task(witness.run(until)) for witness in witnesses]
        while not all(task.done() for task in tasks):
            for limit in (int(LOWERED * LIMIT), None):
                answer = await client.post(f"/models/{MODEL}/limits", json={"device": limit})
                answer.raise_for_status()
                await asyncio.sleep(EVERY_S)
                found.resident[await _count_resident(client)] += 1
    for reason in ("device", "freed"):
        series = rf'understudy_replans_total{{model="{MODEL}",reason="{reason}"}}'
        found.replans[reason] = _value(demo.address.get("/metrics"), series)
    found.attempts = [attempt for witness in witnesses for attempt in witness.attempts]
    return found


def fill_group(folder: Path, seconds: float, group: MemoryGroup, seed: int) -> Found:
    """Serve a model in a cgroup, and let another program take all memory that its limit leaves.

    The limit stays, so that the engine that is started again has less memory than before.
    """
    with _served_in(group, folder) as demo:
        return asyncio.run(_fill(demo, seconds, group, seed))


async def _fill(demo: ServedDemo, seconds: float, group: MemoryGroup, seed: int) -> Found:
    _, witnesses = await _make_witnesses(demo, seed)
    found, until = Found(), time.monotonic() + seconds
    async with asyncio.TaskGroup() as tasks:
        for witness in witnesses:
            tasks.create_task(witness.run(until))
        await asyncio.sleep(seconds / 8)
        found.held.append(group.anonymous_bytes)
        await _limit_above(group)
        take = f"import time; own = b'1' * {OTHER_BYTES}; time.sleep({seconds})"
        other = group.start([sys.executable, "-c", take])
        await asyncio.sleep(seconds / 2)
        found.held.append(group.anonymous_bytes)
        found.has_other = other.poll() is None
        other.kill()
        other.wait()
    found.kills = group.num_oom_kills
    found.attempts = [attempt for witness in witnesses for attempt in witness.attempts]
    return found


async def _limit_above(group: MemoryGroup) -> None:
    """Set the memory limit of a cgroup to `MARGIN_BYTES` above what its processes use now."""
    for _ in range(50):
        try:
            group.limit(group.anonymous_bytes + MARGIN_BYTES)
            return
        except OSError:  # it takes memory while the kernel frees some
            await asyncio.sleep(0.1)
    raise AssertionError("the group cannot be limited")


async def _make_witnesses(demo: ServedDemo, seed: int) -> tuple[str, list[Witness]]:
    """Record the answers of the server; return the URL of its API and clients that know them."""
    url = f"http://127.0.0.1:{demo.address.port}/v1"
    known = await record(url, MODEL, choose_questions(seed), WITNESSES)
    chances = [Random(f"{seed} {number}") for number in range(WITNESSES)]
    return url, [Witness(url, known, lambda: MODEL, own) for own in chances]


async def _count_resident(client: httpx.AsyncClient) -> int:
    status: Any = (await client.get("/status")).json()
    model = next(own for own in status["models"] if own["id"] == MODEL)
    return int(model["tiers"].get("resident", 0))


def _value(metrics: str, series: str) -> float:
    return next(
        (float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(series)), 0.0
    )


def _environment(folder: Path, text: str, rope: int = 1) -> dict[str, str]:
    """Write the configuration of a server, and return its environment.

    Args:
        text: of the model's file.
        rope: by which its context is longer than the demo model's.
    """
    configs = folder / "configs"
    shutil.copytree(ROOT / "configs", configs)
    (configs / "models" / f"{MODEL}.yaml").write_text(
        f"target: {{source: ../demo/target, rope: {{factor: {rope}}}}}\n{text}numerics: strict\n"
    )
    COMPILED.mkdir(parents=True, exist_ok=True)
    (folder / "cache").mkdir()
    (folder / "cache" / COMPILED.name).symlink_to(COMPILED)
    return {
        "UNDERSTUDY_CONFIG": str(configs),
        "UNDERSTUDY_CACHE": str(folder / "cache"),
        "XDG_STATE_HOME": str(folder / "state"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "OMP_NUM_THREADS": "1",
    }
