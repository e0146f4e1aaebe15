"""Tests with random requests, aborts, failures and moving weights: no answer or page is lost.

`UNDERSTUDY_TEST_TRAFFIC_SEEDS=FIRST:LAST` runs other seeds than the usual few.
"""

import os
import random
from collections.abc import Sequence
from typing import Any

import pytest

from engine.runtime.engine import Engine
from tests.engine.hybrids import HYBRIDS
from tests.engine.latents import LATENTS
from tests.engine.models import PLAIN, checkpoint, load
from tests.engine.traffic import FAMILIES, Traffic, open_engine, requests, scene
from tests.variations import variations


def seeds(count: int, *, quick: int) -> list[Any]:
    """Return the seeds to run: the first `count`, some of them quick, or those asked for."""
    if asked := os.environ.get("UNDERSTUDY_TEST_TRAFFIC_SEEDS"):
        return list(range(*map(int, asked.split(":"))))
    return variations(range(count), quick=range(quick))


def plain(family: str) -> Engine:
    return load(checkpoint(family), PLAIN, prefix_cache=False)


@pytest.mark.parametrize("seed", seeds(6, quick=2))
def test_no_traffic_changes_an_answer_or_leaks_a_page(seed: int) -> None:
    run_traffic(seed, FAMILIES)


@pytest.mark.parametrize("seed", seeds(3, quick=1))
def test_no_traffic_changes_an_answer_of_a_hybrid(seed: int) -> None:
    run_traffic(seed, list(HYBRIDS))


@pytest.mark.parametrize("seed", seeds(2, quick=1))
def test_no_traffic_changes_an_answer_of_latent_attention(seed: int) -> None:
    run_traffic(seed, list(LATENTS))


def run_traffic(seed: int, families: Sequence[str]) -> None:
    chance = random.Random(seed)
    what = scene(chance, families)
    asked, want = requests(chance, what, plain(what.family))
    engine = open_engine(what, want, chance)
    traffic = Traffic(engine, asked, want, chance, what)
    traffic.run()
    engine.close()
