"""Send mutated bodies of real clients, and count the answers that are not as they have to be.

    python -m tests.fuzz.requests --cases 10000

Each seed gives the same request every time. `--only SEED` shows one.
"""

import argparse
import asyncio
import json
import sys
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.fuzz.requests.mutations import make_request
from tests.fuzz.requests.run import Outcome, target
from tests.fuzz.requests.templates import TEMPLATES

BLOCK = 250  # seeds in a row that use the same template, which takes seconds to load


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="send the request of this seed, and show it")
    args = parser.parse_args()
    if args.only is not None:
        path, body = make_request(args.only)
        print(path, json.dumps(body))
        args.first, args.cases = args.only, 1
    outcomes = asyncio.run(_send(range(args.first, args.first + args.cases)))
    counts = Counter(outcome.status for outcome in outcomes)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
    print(f"{len(outcomes)} requests ({statuses}), {len(wrong)} with a wrong answer")
    return int(bool(wrong))


async def _send(seeds: range) -> list[Outcome]:
    """Send the requests of the seeds, each block to a model with another template."""
    names = [*TEMPLATES]
    outcomes: list[Outcome] = []
    first = seeds.start
    while first < seeds.stop:
        block = first // BLOCK
        last = min((block + 1) * BLOCK, seeds.stop)
        name = names[block % len(names)]
        with TemporaryDirectory() as folder:
            async with target(name, Path(folder)) as server:
                for seed in range(first, last):
                    outcome = await server.run(seed)
                    outcomes.append(outcome)
                    if outcome.wrong:
                        print(f"{seed} {outcome.path} ({name}): {outcome.wrong}", flush=True)
        first = last
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
