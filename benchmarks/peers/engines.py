"""Choose the runner, the job and the environment for each engine of `benchmarks.offload`."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmarks.drafters.replay import Script, write_scripts
from benchmarks.peers.job import Job, Prompt
from benchmarks.recording import Recording, end_tokens
from engine.spec import DraftSpec

ROWS = 64  # rows of a draft tree
TREES = {  # upper bounds, within which the engine chooses
    "specexec": DraftSpec(method="specexec", depth=32, width=8, branch=4, budget=ROWS),
    "subspec": DraftSpec(method="subspec", depth=32, width=4, branch=4, budget=ROWS),
}
PACES = (1, 4, 8, 16, 28)  # A of replay
OURS = ("none", *TREES, "replay")
PEERS = ("accelerate", "accelerate assisted", "llama.cpp bf16", "llama.cpp q4_0")
DRAFTED = (*TREES, "accelerate assisted")  # these stop at the end of the recorded answer


@dataclass(frozen=True)
class Files:
    """The files in the benchmark's folder, which are made once."""

    folder: Path

    @property
    def target(self) -> Path:
        return self.folder / "target"

    @property
    def draft(self) -> Path:
        return self.folder / "draft"

    @property
    def recordings(self) -> Path:
        return self.folder / "recordings.json"

    @property
    def gguf(self) -> dict[str, Path]:
        """Return the file of each precision, by llama.cpp's name of the precision."""
        return {name: self.folder / f"target-{name}.gguf" for name in ("bfloat16", "q4_0")}

    @property
    def packed(self) -> Path:
        return self.folder / "packed"


@dataclass(frozen=True)
class Setting:
    """The limits that all engines share; None is no limit."""

    name: str
    limit_bytes: int | None  # memory
    read_gbps: float | None  # reads from disk


@dataclass(frozen=True)
class Length:
    """The lengths of the answers; engines that take seconds per token write few tokens."""

    plain: int = 3  # passes of engines that emit one token per pass
    quick: int = 32  # tokens of q4_0, and of all engines if all weights are resident
    drafted: int = 48  # most tokens of engines with a real draft
    prompts: int = 3  # prompts that these engines answer in turn, one in each round
    replayed: int = 3  # passes of replay for each A


@dataclass(frozen=True)
class Start:
    """A process to start for one engine."""

    engine: str
    python: str
    module: str
    job: Job
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, job: Path) -> list[str]:
        """Return the command line of the process, given the file of its job."""
        return [self.python, "-m", f"benchmarks.peers.{self.module}", str(job)]


@dataclass(frozen=True)
class RoundProcesses:
    """The processes of one round, with its limits."""

    files: Files
    setting: Setting
    recordings: Sequence[Recording]
    length: Length
    peers_python: str
    spare_bytes: int  # part of the limit that weights may not use: runtime, buffers, page cache
    number: int  # of the round, from 0

    def start(self, engine: str) -> Start:
        """Return the process of an engine. Raises KeyError for an unknown engine."""
        if engine in OURS:
            return self._ours(engine)
        assistant = str(self.files.draft) if engine == "accelerate assisted" else None
        if engine.startswith("accelerate"):
            options = {"assistant": assistant, "cpu_bytes": self._weight_bytes}
            return self._peer(engine, "transformers_offload", self.files.target, options)
        precision = {"llama.cpp bf16": "bfloat16", "llama.cpp q4_0": "q4_0"}[engine]
        return self._peer(engine, "llama", self.files.gguf[precision], {"context": 1024})

    def probe(self, seconds: float) -> Start:
        """Return the process that measures the bandwidth of the disk."""
        job = Job(str(self.files.target), (), (), {"seconds": seconds, "threads": 4})
        return Start("link", sys.executable, "link_probe", job)

    @property
    def _weight_bytes(self) -> int | None:
        limit = self.setting.limit_bytes
        return None if limit is None else limit - self.spare_bytes

    def _ours(self, engine: str) -> Start:
        if engine == "replay":
            prompts, draft = self._replayed(), self._replay_draft()
        else:
            prompts = self._prompts(engine)
            draft = replace(
                TREES.get(engine, DraftSpec(method="none")),
                source=str(self.files.draft) if engine == "specexec" else None,
            )
        options = {
            "draft": asdict(draft),
            "device_bytes": self._weight_bytes,
            "headroom": ROWS if engine == "replay" else 0,
            "spec": {
                "numerics": "fast" if engine == "none" else "strict",
                "max_sequences": 1,
                "context_length": 1024,
            },
        }
        ends = () if engine == "replay" else end_tokens(self.files.target)
        job = Job(str(self.files.target), prompts, ends, options)
        environment = {"UNDERSTUDY_CACHE": str(self.files.packed), "OMP_WAIT_POLICY": "PASSIVE"}
        return Start(engine, sys.executable, "understudy", job, environment)

    def _peer(self, engine: str, module: str, model: Path, options: dict[str, Any]) -> Start:
        options = {**options, "threads": os.cpu_count()}
        job = Job(str(model), self._prompts(engine), end_tokens(self.files.target), options)
        return Start(engine, self.peers_python, module, job)

    def _prompts(self, engine: str) -> tuple[Prompt, ...]:
        chosen = self.number % self.length.prompts if engine in DRAFTED else 0
        tokens = 1 + self.length.plain
        if engine in DRAFTED:
            tokens = self.length.drafted
        elif self.setting.limit_bytes is None or engine == "llama.cpp q4_0":
            tokens = self.length.quick
        return (Prompt(f"prompt {chosen}", self.recordings[chosen].prompt, tokens),)

    def _replayed(self) -> tuple[Prompt, ...]:
        recording = self.recordings[-1]
        return tuple(
            Prompt(f"A={mean}", recording.prompt, 1 + mean * self.length.replayed) for mean in PACES
        )

    def _replay_draft(self) -> DraftSpec:
        recording = self.recordings[-1]
        tokens = (*recording.prompt, *recording.answer)
        path = self.files.folder / "scripts.json"
        write_scripts(path, {f"A={mean}": Script(tokens, mean) for mean in PACES})
        return DraftSpec(
            method="replay", source=str(path), depth=ROWS, budget=ROWS, tuned=False, ahead=False
        )


def num_recorded(length: Length) -> int:
    """Return how many tokens each recorded answer must have."""
    return max(2 + max(PACES) * length.replayed, length.drafted, length.quick)
