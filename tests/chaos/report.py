"""The counts at the end of a run."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.chaos.accounts import MB, MEMORY


def show(pieces: Sequence[dict[str, Any]]) -> int:
    """Print the counts of all pieces, and return 1 if anything failed."""
    for piece in pieces:
        print(
            f"seed {piece['seed']} ({piece['model']}): {piece['seconds']:.0f} s, "
            f"{piece['requests']} requests, load {piece['load']:.1f}"
        )
        for what, requests, growth in piece["growths"]:
            if growth > 0:
                size = f"{growth / MB:.1f} MB" if what in MEMORY else f"{growth:.0f}"
                print(f"  {what} grew by {size} in {requests} requests")
        print(f"  without a model, MB: {piece['unloaded_mb']}")
        for note in dict.fromkeys(piece["skipped"]):
            print(f"  skipped: {note}")
        for failure in [*piece["failures"], *piece["leaks"]]:
            print(f"  FAILED {failure}")
    for name, title in (
        ("verdicts", "answers of witnesses"),
        ("codes", "errors of witnesses"),
        ("steps", "steps"),
        ("struck", "struck calls"),
        ("tracebacks", "tracebacks in the log"),
    ):
        total: Counter[str] = Counter()
        for piece in pieces:
            total.update(piece[name])
        print(f"{title}: {', '.join(f'{key} {count}' for key, count in total.most_common())}")
    failures = sum(len(piece["failures"]) for piece in pieces)
    leaks = sum(len(piece["leaks"]) for piece in pieces)
    verdicts: Counter[str] = sum((Counter(piece["verdicts"]) for piece in pieces), Counter())
    print(
        f"{len(pieces)} pieces: {verdicts['altered']} altered texts, {verdicts['silent']} requests "
        f"without an answer, {leaks} leaks, {failures} failures in all"
    )
    return int(failures + leaks > 0)
