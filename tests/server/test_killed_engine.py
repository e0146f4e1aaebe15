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
from tests.kills.rounds import Round

WAYS = ("SIGKILL", "no more memory", "SIGSEGV")


@pytest.mark.slow
def test_answers_go_on_after_the_engine_has_ended(served_demo: DemoServer) -> None:
    server, url = served_demo
    own = Round(server.pid, url, "demo", random.Random(2), 8.0, WAYS, len(WAYS))
    asked = list(questions(seed=2))
    own.random.shuffle(asked)
    outcomes = asyncio.run(own.run(asked, {}))
    assert [(str(each.question), each.why) for each in outcomes if not each.is_same] == []
    assert len(own.deaths) == len(WAYS)
    metrics = httpx.get(url.removesuffix("/v1") + "/metrics").text
    found = re.search(r'^understudy_streams_resumed_total\{model="demo"\} (\S+)$', metrics, re.M)
    assert found is not None
    assert float(found[1]) >= sum(each.resumed for each in outcomes) > 0
