"""End the demo's engine a hundred times under requests of every kind, and compare the answers.

    python -m tests.kills --deaths 100 --out build/kills.jsonl

Eight requests run at any time, deaths are at least 20 s apart, and no request is hit more than
three times. Every third round serves a model whose rope frequencies change at 128 tokens. A run
that was broken off goes on where it stopped.
"""

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.demo_server import ROOT, running_server
from tests.kills.deaths import WAYS
from tests.kills.kinds import questions
from tests.kills.longrope import save_longrope
from tests.kills.rounds import Outcome, Round, Wanted

# Most deaths are plain ones: a stopped engine is noticed after 30 s only.
TURNS = ["SIGKILL", "SIGSEGV", "SIGKILL", "no more memory", "SIGKILL", "no more address space"]
TURNS += ["SIGKILL", "SIGABRT", "SIGKILL", "SIGSTOP"]

SEEDS = 2  # whose answers are known after the first rounds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--deaths", type=int, default=100)
    parser.add_argument("--apart", type=float, default=20.0, help="seconds between two deaths")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=TURNS)
    parser.add_argument("--out", type=Path, default=Path("build/kills.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.touch()
    rounds = [json.loads(line) for line in args.out.read_text().splitlines()]
    wanted: dict[str, Wanted] = {}
    while (done := sum(len(own["deaths"]) for own in rounds)) < args.deaths:
        ways = [args.ways[(done + i) % len(args.ways)] for i in range(len(args.ways))]
        rounds.append(play(len(rounds), args.apart, ways, args.deaths - done, wanted))
        with args.out.open("a") as out:
            out.write(json.dumps(rounds[-1]) + "\n")
        show_round(rounds[-1])
    return show(rounds)


def play(
    number: int, apart: float, ways: Sequence[str], most: int, wanted: dict[str, Wanted]
) -> dict[str, Any]:
    """Play one round with a new server, and return it as one line of the file.

    `wanted` has the undisturbed answers of each model, as far as they are known.
    """
    with ExitStack() as stack:
        home = Path(stack.enter_context(TemporaryDirectory(prefix="understudy-kills-")))
        model = "demo"
        if number % 3 == 2:
            model = str(save_longrope(ROOT / "configs" / "demo" / "target", home / "longrope"))
        command = [sys.executable, "-m", "server.cli.main", "serve", model, "--port", "0"]
        server, url = stack.enter_context(running_server(command, home))
        chance = random.Random(number)
        own = Round(server.pid, url, Path(model).name, chance, apart, ways, most)
        asked = list(questions(seed=number // 3 % SEEDS))
        chance.shuffle(asked)
        outcomes = asyncio.run(own.run(asked, wanted.setdefault(own.model, {})))
    return {
        "number": number,
        "model": own.model,
        "load": os.getloadavg()[1],
        "deaths": own.deaths,
        "requests": [line_of(outcome) for outcome in outcomes],
    }


def line_of(outcome: Outcome) -> dict[str, Any]:
    return {**asdict(outcome), "question": str(outcome.question)}


def show_round(own: dict[str, Any]) -> None:
    differ = [request for request in own["requests"] if not request["is_same"]]
    hits = sum(request["num_hits"] for request in own["requests"])
    print(
        f"round {own['number']} ({own['model']}): {len(own['deaths'])} deaths, {hits} hits of "
        f"{len(own['requests'])} requests, {len(differ)} differ",
        flush=True,
    )
    for request in differ:
        print(f"  {request['question']}, hit {request['num_hits']} times: {request['why'][:600]}")


def show(rounds: list[dict[str, Any]]) -> int:
    """Print the tables over all rounds, and return 1 if any answer differs."""
    requests = [request for own in rounds for request in own["requests"]]
    deaths = [tuple(death) for own in rounds for death in own["deaths"]]
    print(f"{len(deaths)} deaths; seconds from the end of an engine to the next token:")
    for way in dict.fromkeys(way for way, _ in deaths):
        own_s = [seconds for own, seconds in deaths if own == way]
        print(
            f"  {way:24} {len(own_s):4}  median {statistics.median(own_s):5.1f}  "
            f"most {max(own_s):5.1f}"
        )
    kinds: dict[str, Counter[str]] = {}
    for request in requests:
        kind, door, how = request["question"].split(", ")
        own = kinds.setdefault(kind, Counter())
        own[door] += request["num_hits"]
        own[how] += request["num_hits"]
        own["differ"] += not request["is_same"]
        own["asked"] += 1
    columns = ["chat", "completions", "responses", "messages", "streamed", "whole"]
    print("hits by kind    " + "".join(f"{name:>13}" for name in [*columns, "asked", "differ"]))
    for kind, own in kinds.items():
        cells = [str(own[name]) if own[name] else "-" for name in columns]
        cells += [str(own["asked"]), str(own["differ"])]
        print(f"  {kind:14}" + "".join(f"{cell:>13}" for cell in cells))
    differ = sum(not request["is_same"] for request in requests)
    hits = Counter(request["num_hits"] for request in requests)
    silence = max(request["silence"] for request in requests)
    print(
        f"requests by their hits: {dict(sorted(hits.items()))}; longest time without a line "
        f"{silence:.1f} s; {differ} of {len(requests)} answers differ"
    )
    return int(differ > 0)


if __name__ == "__main__":
    sys.exit(main())
