"""Send mutated bodies of real clients, and count the answers that are not as they have to be.

    python -m tests.fuzz.requests --cases 10000

Each seed gives the same request every time. `--only SEED` shows one. `--templates FOLDER` takes the
chat templates of real models, as `benchmarks.chat_templates` finds them.
"""

import argparse
import asyncio
import json
import logging
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.chat_templates import templates
from tests.fuzz.requests.mutations import make_request
from tests.fuzz.requests.run import Outcome, target
from tests.fuzz.requests.templates import TEMPLATES

BLOCK = 150  # seeds in a row that use the same template, which takes seconds to load


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--only", type=int, help="send the request of this seed, and show it")
    parser.add_argument("--templates", type=Path, help="a folder with chat templates")
    args = parser.parse_args()
    logging.disable()  # the server's warnings about what it refuses would be thousands of lines
    known = TEMPLATES if args.templates is None else _templates_in(args.templates)
    if args.only is not None:
        path, body = make_request(args.only)
        print(path, json.dumps(body))
        args.first, args.cases = args.only, 1
    outcomes = asyncio.run(_send(range(args.first, args.first + args.cases), known))
    counts = Counter(outcome.status for outcome in outcomes)
    wrong = [outcome for outcome in outcomes if outcome.wrong]
    statuses = ", ".join(f"{status}: {count}" for status, count in sorted(counts.items()))
    print(f"{len(outcomes)} requests ({statuses}), {len(wrong)} with a wrong answer")
    return int(bool(wrong))


def _templates_in(folder: Path) -> dict[str, str]:
    """Return the texts of the chat templates in a folder that are single texts, by name."""
    return {name: text for name, text in templates(folder) if isinstance(text, str)}


async def _send(seeds: range, known: Mapping[str, str]) -> list[Outcome]:
    """Send the requests of the seeds, each block to a model with another template."""
    names = [*known]
    outcomes: list[Outcome] = []
    first = seeds.start
    while first < seeds.stop:
        block = first // BLOCK
        last = min((block + 1) * BLOCK, seeds.stop)
        name = names[block % len(names)]
        with TemporaryDirectory() as folder:
            async with target(known[name], Path(folder)) as server:
                for seed in range(first, last):
                    outcome = await server.run(seed)
                    outcomes.append(outcome)
                    if outcome.wrong:
                        print(f"{seed} {outcome.path} ({name}): {outcome.wrong}", flush=True)
        print(f"seeds {first} to {last - 1} sent", file=sys.stderr, flush=True)
        first = last
    return outcomes


if __name__ == "__main__":
    sys.exit(main())
