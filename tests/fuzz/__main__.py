"""Run cases, each in a process forked from one that has everything imported, and count failures.

    python -m tests.fuzz --cases 5000 --out build/fuzz.jsonl

A run that was broken off goes on where it stopped. `--only SEED` shows one case.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path

from tests.fuzz.run import Outcome, prepare, run_case


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--step", type=int, default=1, help="to share seeds among processes")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz.jsonl"))
    parser.add_argument("--only", type=int, help="run this seed, and show what it says")
    args = parser.parse_args()
    prepare()
    if args.only is not None:
        print(run_case(args.only))
        return 0
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.touch()
    lines = args.out.read_text().splitlines()
    found = {line["seed"]: Outcome(**line) for line in map(json.loads, lines)}
    with args.out.open("a", buffering=1) as out:
        for seed in range(args.first, args.cases, args.step):
            if seed not in found:
                found[seed] = outcome = run_case(seed)
                out.write(json.dumps(vars(outcome)) + "\n")
                if outcome.verdict not in ("answered", "refused"):
                    print(outcome, flush=True)
    counts = Counter(outcome.verdict for outcome in found.values())
    print(len(found), "cases:", ", ".join(f"{name} {count}" for name, count in counts.items()))
    return int(any(name not in ("answered", "refused") for name in counts))


if __name__ == "__main__":
    sys.exit(main())
