"""Options and output that the benchmarks share."""

import argparse
import json
import sys
from pathlib import Path

from benchmarks.report_format import Figures

ROUNDS = 5  # a figure is the median over them


def make_parser(
    about: str | None, *, takes_model: bool = True, takes_rounds: bool = True
) -> argparse.ArgumentParser:
    """Return a parser with the option `--json` and, if wanted, `--rounds` and `--model`.

    Args:
        about: the docstring of the benchmark, whose first line becomes the description.
    """
    arguments = argparse.ArgumentParser(description=(about or "").split("\n")[0])
    arguments.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    if takes_rounds:
        arguments.add_argument(
            "--rounds", type=int, default=ROUNDS, help="a figure is their median"
        )
    if takes_model:
        arguments.add_argument(
            "--model", type=Path, help="its folder (default: a grown demo model)"
        )
    return arguments


def print_figures(figures: Figures, options: argparse.Namespace) -> None:
    """Print the figures as tables, or as one JSON object with `--json`."""
    print(json.dumps(figures.to_json()) if options.json else figures)


def print_progress(line: str) -> None:
    """Print a line to standard error, so that the standard output has only the figures."""
    print(line, file=sys.stderr, flush=True)
