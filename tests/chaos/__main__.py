"""Break a server on purpose while clients use it, and count what went wrong.

    python -m tests.chaos --seed 3 --minutes 10 [--out build/chaos]

Witnesses send requests of every kind whose right answers are known from a quiet run, beside
hostile clients. Meanwhile processes are killed, stopped and starved, the disk fails, the clock
jumps and models are swapped, as the seed says. The time is divided into pieces of at most ten
minutes, each with a server and a seed of its own. A run that was broken off goes on with its next
piece; `--fresh` begins anew, and `--act` plays one act of one piece again.
"""

import argparse
import json
import math
import signal
import sys
from pathlib import Path

from tests.chaos.piece import play
from tests.chaos.report import show
from tests.chaos.schedule import KINDS

PIECE_MINUTES = 10.0
SEEDS_APART = 1000  # between the seeds of two pieces of one run


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=PIECE_MINUTES)
    parser.add_argument("--out", type=Path, default=Path("build/chaos"))
    parser.add_argument("--fresh", action="store_true", help="forget the pieces played before")
    parser.add_argument("--act", type=int, choices=range(4), help="play only this act, once")
    parser.add_argument("--only", default="", help="in it, only kinds of steps that contain this")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the server is ended first
    count = max(1, math.ceil(args.minutes / PIECE_MINUTES))
    seconds = 60 * args.minutes / count
    args.out.mkdir(parents=True, exist_ok=True)
    if args.act is not None:
        logs = args.out / f"logs-{args.seed}"
        kinds = [kind for kind in KINDS if args.only in kind]
        return show([play(args.seed, seconds, args.act, kinds=kinds, say=_say, logs=logs).line()])
    path = args.out / f"seed-{args.seed}-{args.minutes:g}.jsonl"
    if args.fresh:
        path.unlink(missing_ok=True)
    path.touch()
    found = [json.loads(line) for line in path.read_text().splitlines()]
    while len(found) < count:
        seed = args.seed + SEEDS_APART * len(found)
        found.append(play(seed, seconds, say=_say, logs=args.out / f"logs-{seed}").line())
        with path.open("a") as out:
            out.write(json.dumps(found[-1]) + "\n")
    return show(found)


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
