"""A server whose device limit is lowered and raised again and again, while witnesses ask it."""

import asyncio
import shutil
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from benchmarks.hostile_clients.served_demo import ServedDemo
from tests.chaos.witnesses import Attempt, Witness, choose_questions, record
from tests.demo_server import COMPILED, ROOT

MODEL = "limited"
WITNESSES = 4
LIMIT = 34 << 20  # bytes of device memory, which all of the demo model fits in
LOWERED = 0.8
EVERY_S = 4.0  # from a change of the limit to the next
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
    """

    attempts: list[Attempt] = field(default_factory=list)
    replans: dict[str, float] = field(default_factory=dict)
    resident: Counter[int] = field(default_factory=Counter)

    @property
    def verdicts(self) -> Counter[str]:
        return Counter(attempt.verdict for attempt in self.attempts)


def change_limits(folder: Path, seconds: float, tier: str, draft: str, seed: int) -> Found:
    """Serve the demo model in `folder` and change its limit for some seconds under load.

    Args:
        tier: where units go that leave the device, one of `TIERS`.
        draft: one of `DRAFTS`.
    """
    demo = ServedDemo(folder, 10.0, model=MODEL, environment=_environment(folder, tier, draft))
    try:
        return asyncio.run(_change(demo, seconds, seed))
    finally:
        demo.stop()


async def _change(demo: ServedDemo, seconds: float, seed: int) -> Found:
    url = f"http://127.0.0.1:{demo.address.port}/v1"
    known = await record(url, MODEL, choose_questions(seed), WITNESSES)
    witnesses = [
        Witness(url, known, lambda: MODEL, Random(f"{seed} {n}")) for n in range(WITNESSES)
    ]
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


async def _count_resident(client: httpx.AsyncClient) -> int:
    status: Any = (await client.get("/status")).json()
    model = next(own for own in status["models"] if own["id"] == MODEL)
    return int(model["tiers"].get("resident", 0))


def _value(metrics: str, series: str) -> float:
    return next(
        (float(line.split()[-1]) for line in metrics.splitlines() if line.startswith(series)), 0.0
    )


def _environment(folder: Path, tier: str, draft: str) -> dict[str, str]:
    configs = folder / "configs"
    shutil.copytree(ROOT / "configs", configs)
    (configs / "models" / f"{MODEL}.yaml").write_text(
        "target: {source: ../demo/target}\n"
        f"memory: {{device: {LIMIT}}}\n{DRAFTS[draft]}{TIERS[tier]}numerics: strict\n"
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
