"""Run the benchmarks and write docs/benchmarks.md, with plots.

    python -m benchmarks.report                  the main group, 15 minutes (`make bench`)
    python -m benchmarks.report --group memory   peak memory of 1.5 B (`make bench-memory`)
    python -m benchmarks.report --group hybrids  recurrent layers (`make bench-hybrids`)
    python -m benchmarks.report --group coded    weights in the lossless code (`make bench-coded`)
    python -m benchmarks.report --group peers    other engines (`make bench-peers`)
    python -m benchmarks.report --group hostile  hostile clients (`make bench-hostile`)
    python -m benchmarks.report --group gpu      the records of `make first-gpu-run`
    python -m benchmarks.report --only batch     one part; the others keep their figures
    python -m benchmarks.report --render         only write the page from docs/benchmarks.json

Each part runs in its own process. Its figures are kept in docs/benchmarks.json, so that the page
can show parts that were measured at different times, each with its date. A part that fails keeps
its older figures, and the exit code is then 1.
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

from benchmarks.command import print_progress
from benchmarks.plots import draw, file_name
from benchmarks.report_format import Bar, Figures, Table, format_number
from benchmarks.report_parts import PARTS, Group, Part

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGE, STORE, PLOTS = "benchmarks.md", "benchmarks.json", "benchmarks"
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "fastapi", "uvicorn")
CACHE = "build/benchmarks/cache"  # for packed weights, apart from the user's cache
LOG_LINES = 12  # lines of output that are shown of a failed part

Stored = dict[str, dict[str, Any]]  # part -> time, seconds, command, versions, machine, figures


def main() -> int:
    options = _make_parser().parse_args()
    stored = read_store(DOCS)
    began = time.monotonic()
    failed: list[str] = []
    if not options.render:
        for part in _choose_parts(options):
            entry = measure(part)
            if entry is None:
                failed.append(part.name)
            else:
                stored[part.name] = entry
                write(stored, DOCS)  # kept even if a later part fails
    write(stored, DOCS)
    for bar in iter_bars(stored):
        print(bar)
    print_progress(f"in all {(time.monotonic() - began) / 60:.1f} min")
    print(f"wrote {DOCS / PAGE}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return int(bool(failed))


def measure(part: Part) -> dict[str, Any] | None:
    """Run one part and return its entry; print why and return None if it gave no figures."""
    command = [sys.executable, "-m", f"benchmarks.{part.name}", *part.arguments, "--json"]
    print_progress(f"{part.name}: about {part.minutes:g} min ...")
    began = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, env=_make_environment(), stdout=subprocess.PIPE)
    seconds = time.monotonic() - began
    try:
        figures = part.read(json.loads(done.stdout))
    except (ValueError, KeyError, TypeError, IndexError) as error:  # the output is not figures
        last = done.stdout.decode(errors="replace").splitlines()[-LOG_LINES:]
        print_progress(
            "\n".join([f"{part.name}: exit code {done.returncode}, no figures: {error!r}", *last])
        )
        return None
    reached = sum(bar.is_reached for bar in figures.bars)
    print_progress(f"{part.name}: {seconds:.0f} s, {reached} of {len(figures.bars)} bars reached")
    return {
        "measured": datetime.now(UTC).isoformat(timespec="minutes"),
        "seconds": seconds,
        "command": " ".join(["python", *command[1:-1]]),
        "versions": list_versions(),
        "machine": dict(figures.machine) or _describe_machine(),
        "figures": figures.to_json(),
    }


def list_versions() -> dict[str, str]:
    """Return the versions of this package and of `PACKAGES`."""
    return {name: metadata.version(name) for name in ("understudy", *PACKAGES)}


def read_store(docs: Path) -> Stored:
    """Return the stored entries, none if nothing was measured yet."""
    path = docs / STORE
    stored: Stored = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return stored


def write(stored: Mapping[str, Mapping[str, Any]], docs: Path) -> None:
    """Write the store, the plots and the page into `docs`."""
    docs.mkdir(exist_ok=True)
    text = json.dumps(stored, indent=1, ensure_ascii=False)
    (docs / STORE).write_text(text + "\n", encoding="utf-8")
    for _, entry in _order_parts(stored):
        for plot in Figures.from_json(entry["figures"]).plots:
            draw(plot, docs / PLOTS)
    (docs / PAGE).write_text(render_page(stored), encoding="utf-8")


def render_page(stored: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page as Markdown."""
    parts = [
        "# Benchmarks",
        "Written by `make bench`, `make bench-memory`, `make bench-hybrids`, `make bench-coded`, "
        "`make bench-peers` and `make bench-hostile` (`python -m benchmarks.report`) from "
        f"[{STORE}]({STORE}). Each part ran our engine and what it is compared with in turn. "
        "Figures are medians of at least five rounds unless a table says otherwise. W is the "
        "number of bytes of weights that travel in a pass, B the bandwidth of the link, and A the "
        "tokens that a pass emits for one sequence. The docstring of each part's module in "
        "`benchmarks/` says what the part measures and how. A bar is the value that a figure must "
        "reach.",
        "## Figures and their bars",
        str(_make_summary(stored)),
        *(_render_section(part, entry) for part, entry in _order_parts(stored)),
    ]
    missing = [part.name for part in PARTS if part.name not in stored]
    if missing:
        parts.append(f"Not measured yet: {', '.join(missing)}.")
    return "\n\n".join(parts) + "\n"


def iter_bars(stored: Mapping[str, Mapping[str, Any]]) -> Iterator[Bar]:
    """Yield the bars of all parts in the order of the page."""
    for _, entry in _order_parts(stored):
        yield from Figures.from_json(entry["figures"]).bars


def _make_summary(stored: Mapping[str, Mapping[str, Any]]) -> Table:
    words = {">=": "at least", "<=": "at most"}
    rows = [
        (
            part.name,
            bar.quantity,
            f"{format_number(bar.value)} {bar.unit}".strip(),
            f"{words[bar.relation]} {format_number(bar.bound)}",
            "yes" if bar.is_reached else "**no**",
        )
        for part, entry in _order_parts(stored)
        for bar in Figures.from_json(entry["figures"]).bars
    ]
    return Table("", ["part", "quantity", "figure", "bar", "reached"], rows)


def _render_section(part: Part, entry: Mapping[str, Any]) -> str:
    figures = Figures.from_json(entry["figures"])
    images = [f"![{plot.y}]({PLOTS}/{file_name(plot)})" for plot in figures.plots]
    return "\n\n".join([f"## {figures.title}", _render_origin(entry), str(figures), *images])


def _render_origin(entry: Mapping[str, Any]) -> str:
    machine = {name: value for name, value in entry["machine"].items() if value is not None}
    used = dict(machine.pop("versions", {})) | dict(entry["versions"])
    packages = ", ".join(f"{name} {version}" for name, version in used.items())
    words = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in machine.items())
    return (
        f"`{entry['command']}`, {entry['measured'].replace('T', ' ')}, {entry['seconds']:.0f} s. "
        f"Machine: {words}. {packages}."
    )


def _order_parts(
    stored: Mapping[str, Mapping[str, Any]],
) -> list[tuple[Part, Mapping[str, Any]]]:
    return [(part, stored[part.name]) for part in PARTS if part.name in stored]


def _choose_parts(options: argparse.Namespace) -> Sequence[Part]:
    if options.only:
        return [part for part in PARTS if part.name in options.only]
    return [part for part in PARTS if part.group == options.group]


def _make_environment() -> dict[str, str]:
    """Return the environment of a part: without network, and waiting threads do not spin."""
    own = {
        "UNDERSTUDY_CACHE": str(ROOT / CACHE),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return own | os.environ


def _describe_machine() -> dict[str, Any]:
    from benchmarks.runs import describe_machine  # imports torch, so only if a part needs it

    return describe_machine()


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--group", choices=get_args(Group), default="bench", help="to run")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], help="parts")
    parser.add_argument("--render", action="store_true", help="only write the page")
    return parser


if __name__ == "__main__":
    sys.exit(main())
