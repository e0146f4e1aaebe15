"""Tests with random requests, aborts, failures and moving weights: no answer or page is lost.

`UNDERSTUDY_TRAFFIC_SEEDS=FIRST:LAST` runs other seeds than the usual few.
"""

import os
import random
from collections.abc import Sequence

import pytest

from engine.runtime.engine import Engine
from tests.engine.hybrids import HYBRIDS
from tests.engine.latents import LATENTS
from tests.engine.models import PLAIN, checkpoint, load
from tests.engine.traffic import FAMILIES, Traffic, open_engine, requests, scene


def seeds(usual: str) -> range:
    """Return the seeds to run: the usual few, FIRST:LAST, or those that are asked for."""
    first, last = map(int, os.environ.get("UNDERSTUDY_TRAFFIC_SEEDS", usual).split(":"))
    return range(first, last)


def plain(family: str) -> Engine:
    return load(checkpoint(family), PLAIN, prefix_cache=False)


@pytest.mark.parametrize("seed", seeds("0:6"))
def test_no_traffic_changes_an_answer_or_leaks_a_page(seed: int) -> None:
    run_traffic(seed, FAMILIES)


@pytest.mark.parametrize("seed", seeds("0:3"))
def test_no_traffic_changes_an_answer_of_a_hybrid(seed: int) -> None:
    run_traffic(seed, list(HYBRIDS))


@pytest.mark.parametrize("seed", seeds("0:2"))
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
