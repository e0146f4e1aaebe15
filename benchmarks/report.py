"""Run the benchmarks and write docs/benchmarks.md, with plots.

    python -m benchmarks.report                  all that takes 15 minutes (`make bench`)
    python -m benchmarks.report --group memory   peak memory of 1.5 B (`make bench-memory`)
    python -m benchmarks.report --group peers    the foreign engines (`make bench-peers`)
    python -m benchmarks.report --group hostile  hostile clients (`make bench-hostile`)
    python -m benchmarks.report --only batch     one part again, the rest as it was
    python -m benchmarks.report --render         the page alone, out of docs/benchmarks.json

Each part is a process of its own. What it measured is kept in docs/benchmarks.json, so that parts
measured at different times stand on one page, each with its date. A part that fails keeps its
older figures; then the exit code is 1.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

from benchmarks.plots import draw, file_name
from benchmarks.report_format import Bar, Figures, Table, number
from benchmarks.report_parts import PARTS, Group, Part

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE, STORE, PLOTS = "benchmarks.md", "benchmarks.json", "benchmarks"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "fastapi", "uvicorn")
CACHE = "build/benchmarks/cache"  # packed weights, not among the user's own
LOG_LINES = 12  # of a part that failed

Stored = dict[str, dict[str, Any]]  # by part: when, seconds, command, versions, machine, figures


def main() -> int:
    options = _parser().parse_args()
    stored = read_store(DOCS)
    began = time.monotonic()
    failed: list[str] = []
    if not options.render:
        for part in _chosen(options):
            entry = measure(part)
            if entry is None:
                failed.append(part.name)
            else:
                stored[part.name] = entry
                write(stored, DOCS)  # whatever comes after it
    write(stored, DOCS)
    for bar in bars(stored):
        print(bar)
    _tell(f"in all {(time.monotonic() - began) / 60:.1f} min")
    print(f"wrote {DOCS / PAGE}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


def measure(part: Part) -> dict[str, Any] | None:
    """Run one part; None when it gave no figures, which is told."""
    command = [sys.executable, "-m", f"benchmarks.{part.name}", *part.arguments, "--json"]
    _tell(f"{part.name}: about {part.minutes:g} min ...")
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=_environment(), stdout=subprocess.PIPE)
    seconds = time.monotonic() - began
    try:
        figures = part.read(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError, IndexError) as error:  # it printed something else
        last = done.stdout.decode(errors="replace").splitlines()[-LOG_LINES:]
        _tell(
            "\n".join([f"{part.name}: exit code {done.returncode}, no figures: {error!r}", *last])
        )
        return None
    reached = sum(bar.is_reached for bar in figures.bars)
    _tell(f"{part.name}: {seconds:.0f} s, {reached} of {len(figures.bars)} bars reached")
    return {
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": seconds,
        "command": " ".join(["python", *command[1:-1]]),
        "versions": versions(),
        "machine": dict(figures.machine) or _machine(),
        "figures": figures.to_json(),
    }


def versions() -> dict[str, str]:
    """Of the packages that matter, and of this one."""
    return {name: metadata.version(name) for name in ("understudy", *PACKAGES)}


def read_store(docs: Path) -> Stored:
    """What was measured before; empty at first."""
    path = docs / STORE
    stored: Stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return stored


def write(stored: Mapping[str, Mapping[str, Any]], docs: Path) -> None:
    """The store, the plots and the page."""
    docs.mkdir(exist_ok=True)
    text = json.dumps(stored, indent=1, ensure_ascii=False)
    (docs / STORE).write_text(text + "\n", encoding="utf-8")
    for _, entry in _in_order(stored):
        for plot in Figures.from_json(entry["figures"]).plots:
            draw(plot, docs / PLOTS)
    (docs / PAGE).write_text(page(stored), encoding="utf-8")


def page(stored: Mapping[str, Mapping[str, Any]]) -> str:
    """The Markdown of all that was measured."""
    parts = [
        "# Benchmarks",
        "Written by `make bench`, `make bench-memory`, `make bench-peers` and `make bench-hostile` "
        "(`python -m benchmarks.report`) from "
        f"[{STORE}]({STORE}). Ours and what it is held against ran in turn in one run; figures "
        "are medians of at least five rounds unless a table says otherwise. W are the bytes that "
        "must travel in a pass, B the link's bandwidth, A the tokens a pass emits for one "
        "sequence. What each part measures and how is told by its module in `benchmarks/`.",
        "## Against the bars",
        str(_summary(stored)),
        *(_section(part, entry) for part, entry in _in_order(stored)),
    ]
    missing = [part.name for part in PARTS if part.name not in stored]
    if missing:
        parts.append(f"Not measured yet, or not here: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def bars(stored: Mapping[str, Mapping[str, Any]]) -> Iterator[Bar]:
    """All figures that have a bar, in the page's order."""
    for _, entry in _in_order(stored):
        yield from Figures.from_json(entry["figures"]).bars


def _summary(stored: Mapping[str, Mapping[str, Any]]) -> Table:
    words = {">=": "at least", "<=": "at most"}
    rows = [
        (
            part.name,
            bar.quantity,
            f"{number(bar.value)} {bar.unit}".strip(),
            f"{words[bar.relation]} {number(bar.bound)}",
            "yes" if bar.is_reached else "**no**",
        )
        for part, entry in _in_order(stored)
        for bar in Figures.from_json(entry["figures"]).bars
    ]
    return Table("", ["part", "quantity", "figure", "bar", "reached"], rows)


def _section(part: Part, entry: Mapping[str, Any]) -> str:
    figures = Figures.from_json(entry["figures"])
    images = [f"![{plot.y}]({PLOTS}/{file_name(plot)})" for plot in figures.plots]
    return "\n\n".join([f"## {figures.title}", _when(entry), str(figures), *images])


def _when(entry: Mapping[str, Any]) -> str:
    machine = {name: value for name, value in entry["machine"].items() if value is not None}
    told = dict(machine.pop("versions", {})) | dict(entry["versions"])
    packages = ", ".join(f"{name} {version}" for name, version in told.items())
    words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items())
    return (
        f"`{entry['command']}`, {entry['measured'].replace('T', ' ')}, {entry['seconds']:.0f} s. "
        f"Machine: {words}. {packages}."
    )


def _in_order(
    stored: Mapping[str, Mapping[str, Any]],
) -> list[tuple[Part, Mapping[str, Any]]]:
    return [(part, stored[part.name]) for part in PARTS if part.name in stored]


def _chosen(options: argparse.Namespace) -> Sequence[Part]:
    if options.only:
        return [part for part in PARTS if part.name in options.only]
    return [part for part in PARTS if part.group == options.group]


def _environment() -> dict[str, str]:
    """Nothing is looked up on the network, and threads that wait do not spin."""
    own = {
        "UNDERSTUDY_CACHE": str(ROOT / CACHE),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return own | os.environ


def _machine() -> dict[str, Any]:
    from benchmarks.runs import machine  # torch: where a part did not tell its own

    return machine()


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--group", choices=get_args(Group), default="bench")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS])
    parser.add_argument("--render", action="store_true", help="write the page, measure nothing")
    return parser


if __name__ == "__main__":
    sys.exit(main())
