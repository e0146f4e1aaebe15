"""A first start in a process that hardly has the memory which its plan needs.

The copies of the draft are made and the weights are coded then, from empty caches. A plan that says
how much is missing must be right: with just that much more, the model is loaded.
"""

import os
import re
import sys
from pathlib import Path
from subprocess import PIPE

import pytest

from benchmarks.grow import SMALL, grow
from benchmarks.memory_group import NoMemoryGroup, memory_group
from benchmarks.runs import DEMO

MIB = 1 << 20
LOW = 620 * MIB  # too little for any plan, and enough for the process itself
ATTEMPTS = 4  # more KV pages or more threads may be planned with more memory
LEAST_SHARE = 0.8  # of the process's free memory that a plan uses
SHORTAGE = re.compile(r"is ([\d.]+) (MiB|GiB) too little")
SCRIPT = """
import sys
from unittest.mock import patch
from benchmarks.runs import session
from engine.errors import ModelError
from engine.planning import choice
from engine.spec import DraftSpec, ModelSpec, StreamSpec, TargetSpec
draft = DraftSpec("subspec", calibrate=False)
stream = StreamSpec(tier="disk", resident=9)
target = TargetSpec(sys.argv[1])
spec = ModelSpec("m", target, draft, stream=stream, context_length=512, max_sequences=1)
try:
    with patch.object(choice, "LEAST_GAIN", 0.0), session(spec) as own:
        print("loaded", own.loaded.info.link_bits)
except ModelError as error:
    print("refused", error)
"""


def first_start(model: Path, cache: Path, limit: int) -> str:
    """Load a model in a process with this memory and an empty cache; return what it printed."""
    environment = os.environ | {"UNDERSTUDY_CACHE": str(cache), "OMP_NUM_THREADS": "2"}
    with memory_group("understudy-tight") as group:
        group.limit(limit)
        command = [sys.executable, "-c", SCRIPT, str(model)]
        child = group.start(command, stdout=PIPE, stderr=PIPE, env=environment)
        found, errors = child.communicate(timeout=500)
        kills = group.num_oom_kills
    assert child.returncode == 0, (child.returncode, kills, limit, errors.decode()[-2000:])
    return str(found.decode())


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_first_start_needs_no_more_than_its_plan_says(tmp_path: Path) -> None:
    try:
        with memory_group("understudy-tight"):
            pass
    except NoMemoryGroup as error:
        pytest.skip(str(error))
    model = grow(DEMO / "target", tmp_path / "model", SMALL).folder
    limit, found = LOW, first_start(model, tmp_path / "cache", LOW)
    assert SHORTAGE.search(found), found
    for number in range(ATTEMPTS):
        if (short := SHORTAGE.search(found)) is None:
            break
        missing = float(short[1]) * (1024 if short[2] == "GiB" else 1) * MIB
        limit += int(missing / LEAST_SHARE) + MIB
        found = first_start(model, tmp_path / f"cache-{number}", limit)
    status, _, bits = found.partition(" ")
    assert status == "loaded", (limit, found)
    assert float(bits) < 8
