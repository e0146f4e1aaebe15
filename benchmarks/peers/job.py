"""What a runner is given and what it prints. Standard library only."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

OWN_IO = Path("/proc/self/io")


@dataclass(frozen=True)
class Prompt:
    """One answer to write."""

    label: str
    ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Job:
    """What one process does: load, answer the prompts one after another, greedily, print."""

    model: str  # a checkpoint's folder, or a file
    prompts: tuple[Prompt, ...]
    ends: tuple[int, ...]  # tokens that end an answer
    options: dict[str, Any] = field(default_factory=dict)  # the runner's own

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        data = json.loads(path.read_text(encoding="utf-8"))
        prompts = tuple(
            Prompt(p["label"], tuple(p["ids"]), p["max_tokens"]) for p in data["prompts"]
        )
        return cls(data["model"], prompts, tuple(data["ends"]), data["options"])


@dataclass(frozen=True)
class Mark:
    """The end of a pass of the target."""

    at: float  # seconds of the process's clock
    tokens: int  # emitted for this prompt so far
    disk_bytes: int  # read by the process so far, from the disk itself


@dataclass(frozen=True)
class Answer:
    """One answer, and the passes it took; the first is the prompt's."""

    label: str
    tokens: tuple[int, ...]
    began: float
    marks: tuple[Mark, ...]
    figures: dict[str, float] = field(default_factory=dict)  # the runner's own, without the first

    @property
    def passes(self) -> int:
        """Without the first."""
        return len(self.marks) - 1

    @property
    def num_tokens(self) -> int:
        """Without those of the first pass."""
        return self.marks[-1].tokens - self.marks[0].tokens

    @property
    def seconds(self) -> float:
        """Without the first pass."""
        return self.marks[-1].at - self.marks[0].at

    @property
    def disk_bytes(self) -> int:
        """Without the first pass."""
        return self.marks[-1].disk_bytes - self.marks[0].disk_bytes


@dataclass(frozen=True)
class Outcome:
    """All that one process did."""

    load_s: float
    answers: tuple[Answer, ...]
    figures: dict[str, Any] = field(default_factory=dict)  # of the whole process

    def print(self) -> None:
        """As the last line of standard output."""
        print(json.dumps(asdict(self)), flush=True)

    @classmethod
    def parse(cls, output: str) -> "Outcome":
        """From the last line of a runner's output. Raises ValueError for one that has none."""
        lines = output.strip().splitlines()
        if not lines:
            raise ValueError("it printed nothing")
        data = json.loads(lines[-1])
        answers = tuple(
            Answer(
                label=answer["label"],
                tokens=tuple(answer["tokens"]),
                began=answer["began"],
                marks=tuple(Mark(**mark) for mark in answer["marks"]),
                figures=answer["figures"],
            )
            for answer in data["answers"]
        )
        return cls(data["load_s"], answers, data["figures"])


class Recorder:
    """Marks the passes of one answer as they end."""

    def __init__(self, prompt: Prompt, ends: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._prompt = prompt
        self._ends = ends
        self._marks: list[Mark] = []
        self._began = time.perf_counter()

    def emit(self, tokens: Sequence[int]) -> bool:
        """A pass ended with these tokens; whether the answer is complete."""
        for token in tokens:
            self.tokens.append(token)
            if self.is_complete:
                break
        self._marks.append(Mark(time.perf_counter(), len(self.tokens), disk_bytes()))
        return self.is_complete

    @property
    def is_complete(self) -> bool:
        ended = bool(self.tokens) and self.tokens[-1] in self._ends
        return ended or len(self.tokens) >= self._prompt.max_tokens

    def answer(self, **figures: float) -> Answer:
        label, tokens = self._prompt.label, tuple(self.tokens)
        return Answer(label, tokens, self._began, tuple(self._marks), figures)


def run(work: Callable[[Job], Outcome]) -> None:
    """The main function of a runner: the job's path is its only argument."""
    work(Job.read(Path(sys.argv[1]))).print()


def disk_bytes() -> int:
    """What this process has read from storage so far, not from the page cache."""
    lines = OWN_IO.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
