"""The command line that the benchmarks of the engine share."""

import argparse
import json
from pathlib import Path

from benchmarks.report_format import Figures

ROUNDS = 5  # what a median is taken over


def parser(about: str | None, *, takes_model: bool = True) -> argparse.ArgumentParser:
    """`--json`, `--rounds`, and `--model` where another one may be measured."""
    arguments = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    arguments.add_argument("--rounds", type=int, default=ROUNDS)
    if takes_model:
        arguments.add_argument("--model", type=Path, help="its folder (default: the demo's, grown)")
    return arguments


def show(figures: Figures, options: argparse.Namespace) -> None:
    """Print what was measured, as `--json` wants it."""
    print(json.dumps(figures.to_json()) if options.json else figures)
