"""Compare weights in the lossless code with plain ones on a model that does not fit into memory.

    python -m benchmarks.coded [--json] [--small] [--folder FOLDER] [--rounds N]

The demo's target, grown to 1.5 B parameters (bfloat16, the same function), is on disk. An engine
runs in a process with memory of 60 % of the checkpoint and a limited bandwidth for reads, once with
`stream.coding: none` and once with `auto`, in turn; figures are medians over the rounds. Trees have
a fixed shape, so that both check the same rows. All settings are also packed in this process, by
each kind of 4-bit copy, for the bits of a weight and the time. This needs root and 12 GB of disk.

With `--small` the model has 79 M parameters and streams from RAM over a simulated link, without
root, in two minutes; its bars are those of the large one. The files stay in the folder and are used
again. On a machine that other programs use, run it at a high priority.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.coded_packing import measure_packing
from benchmarks.coded_report import Case, Pair, make_figures, make_trial
from benchmarks.command import make_parser, print_figures, print_progress
from benchmarks.grow import LARGE, SMALL, grow
from benchmarks.memory_group import NoMemoryGroup
from benchmarks.offload import MEMORY_SHARE, PROBE_S, RunFailed, run
from benchmarks.peers.engines import Files, Setting, Start
from benchmarks.peers.job import Job, Prompt
from benchmarks.recording import CHOSEN
from benchmarks.runs import DEMO, MODELS, load_chat_prompts
from engine.spec import DraftSpec

PASSES = 4  # of an answer, after that of the prompt
MOST_TOKENS = 400
HEADROOM = 64  # tokens, so that the last tree of an answer is a whole one
TIMEOUT_S = 900.0
CASES = (
    Case("subspec", 1.0, has_share=True),
    Case("subspec", 0.5, has_share=True),
    Case("subspec", 0.2, least_ratio=1.7),
    Case("subspec", None),
    Case("none", 0.5, least_ratio=1.25),
    Case("specexec", 0.5, least_ratio=1.2),
)
TREE = DraftSpec(depth=24, width=2, branch=2, budget=64, tuned=False, calibrate=False)


@dataclass(frozen=True)
class Place:
    """The files of a run and its limits."""

    files: Files
    limit_bytes: int | None  # of memory; None: units are in RAM, behind a simulated link

    def setting(self, case: Case, *, is_first: bool = False) -> Setting:
        """Return the limits in which a case runs. The first run compiles, in more memory."""
        if self.limit_bytes is None or case.gbps is None:
            return Setting(case.name, None, None)
        return Setting(case.name, self.limit_bytes * (1 + is_first), case.gbps)

    def start(self, case: Case, coding: str) -> Start:
        """Return the process that answers a prompt with weights that are coded or not."""
        source = str(self.files.draft) if case.method == "specexec" else None
        draft = DraftSpec(method="none")
        if case.method != "none":
            draft = replace(TREE, method=case.method, source=source)
        stream: dict[str, object] = {"coding": coding}
        if case.gbps is None:
            stream["tier"] = "resident"
        elif self.limit_bytes is None:
            stream |= {"tier": "ram", "resident": 0, "simulate_gbps": case.gbps}
        options = {
            "draft": asdict(draft),
            "stream": stream,
            "headroom": HEADROOM,
            "passes": PASSES,
            "spec": {"max_sequences": 1, "context_length": 1024},
        }
        prompt = Prompt(case.name, tuple(load_chat_prompts("held_out")[CHOSEN[-1]]), MOST_TOKENS)
        job = Job(str(self.files.target), (prompt,), (), options)
        environment = {"UNDERSTUDY_CACHE": str(self.files.packed), "OMP_WAIT_POLICY": "PASSIVE"}
        return Start(f"{case.name}, {coding}", sys.executable, "understudy", job, environment)

    def probe(self, case: Case) -> float | None:
        """Return the measured bandwidth of a case's link; None if there is none."""
        if self.limit_bytes is None or case.gbps is None:
            return case.gbps
        job = Job(str(self.files.target), (), (), {"seconds": PROBE_S, "threads": 4})
        start = Start("link", sys.executable, "link_probe", job)
        outcome = run(start, self.setting(case), self.files, TIMEOUT_S).outcome
        return float(outcome.figures["gbps"])


def main() -> int:
    arguments = make_parser(__doc__, takes_model=False)
    arguments.add_argument("--small", action="store_true", help="79 M parameters, without root")
    arguments.add_argument("--folder", type=Path, help="of the files (default: below build)")
    arguments.add_argument(
        "--cases", nargs="+", type=int, default=range(len(CASES)), help="numbers of some settings"
    )
    options = arguments.parse_args()
    folder = options.folder or MODELS / ("coded-small" if options.small else "coded")
    folder.mkdir(parents=True, exist_ok=True)
    files = Files(folder.resolve())
    checkpoint = grow(DEMO / "target", files.target, SMALL if options.small else LARGE)
    grow(DEMO / "draft", files.draft, SMALL)
    limit = None if options.small else int(checkpoint.nbytes * MEMORY_SHARE)
    cases = [CASES[number] for number in options.cases]
    try:
        packings = measure_packing(checkpoint, files.folder / "packing", options.rounds)
        pairs = list(measure(Place(files, limit), cases, options.rounds))
    except (NoMemoryGroup, RunFailed) as error:
        print(f"coded: {error}", file=sys.stderr)
        return 1
    print_figures(make_figures(checkpoint, packings, pairs), options)
    return 0


def measure(place: Place, cases: Sequence[Case], rounds: int) -> Iterator[Pair]:
    """Yield the pairs of all rounds: each case with plain weights and with `auto`, in turn.

    A run before the first round of each method packs the weights.
    """
    packed = set[str]()
    for case in cases:
        first = 0 if case.method in packed else -1
        packed.add(case.method)
        for number in range(first, rounds):
            gbps = place.probe(case)
            codings = ("none", "auto") if number % 2 else ("auto", "none")
            found = {}
            for coding in codings:
                print_progress(f"{case.name}, round {number + 1} of {rounds}: {coding}")
                start = place.start(case, coding)
                setting = place.setting(case, is_first=number < 0)
                found[coding] = make_trial(run(start, setting, place.files, TIMEOUT_S))
            if number >= 0:
                yield Pair(case, gbps, found["none"], found["auto"])


if __name__ == "__main__":
    sys.exit(main())
