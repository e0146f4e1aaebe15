"""Answers of the real server whose engine is ended: they are those of an undisturbed run.

`python -m tests.kills` does the same a hundred times, in more ways.
"""

import asyncio
import random
import re

import httpx
import pytest

from tests.demo_server import DemoServer
from tests.kills.kinds import questions
from tests.kills.rounds import Round, Wanted


@pytest.fixture(scope="module")
def want() -> Wanted:
    """Return the undisturbed answers, which the first round finds."""
    return {}


@pytest.mark.long
@pytest.mark.parametrize("way", ["SIGKILL", "no more memory", "SIGSEGV"])
def test_answers_go_on_after_the_engine_has_ended(
    served_demo: DemoServer, way: str, want: Wanted
) -> None:
    server, url = served_demo
    # A request of which two engines die is refused, so there is one death only.
    own = Round(server.pid, url, "demo", random.Random(2), 8.0, (way,), 1)
    asked = list(questions(2))
    own.random.shuffle(asked)
    outcomes = asyncio.run(own.run(asked, want))
    assert [(str(each.question), each.why) for each in outcomes if not each.is_same] == []
    assert len(own.deaths) == 1
    metrics = httpx.get(url.removesuffix("/v1") + "/metrics").text
    found = re.search(r'^understudy_streams_resumed_total\{model="demo"\} (\S+)$', metrics, re.M)
    assert found is not None
    assert float(found[1]) >= sum(each.resumed for each in outcomes) > 0
