"""The input and output of a runner. This module imports only the standard library."""

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
    """A prompt and the length of its answer."""

    label: str
    ids: tuple[int, ...]
    max_tokens: int


@dataclass(frozen=True)
class Job:
    """The work of one process: answer the prompts in turn, greedily, and print the outcome."""

    model: str  # a checkpoint's folder, or a file
    prompts: tuple[Prompt, ...]
    ends: tuple[int, ...]  # end tokens
    options: dict[str, Any] = field(default_factory=dict)  # for this runner only

    def write(self, path: Path) -> None:
        """Write the job as JSON for a runner."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read a job that `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        prompts = tuple(
            Prompt(p["label"], tuple(p["ids"]), p["max_tokens"]) for p in data["prompts"]
        )
        return cls(data["model"], prompts, tuple(data["ends"]), data["options"])


@dataclass(frozen=True)
class Mark:
    """The state at the end of a pass of the target."""

    at: float  # seconds of `time.perf_counter`
    tokens: int  # emitted for this prompt so far
    disk_bytes: int  # read from disk by the process so far, without page cache


@dataclass(frozen=True)
class Answer:
    """An answer and its passes, the first of which is the prompt's."""

    label: str
    tokens: tuple[int, ...]
    began: float
    marks: tuple[Mark, ...]
    figures: dict[str, float] = field(
        default_factory=dict
    )  # of this runner, without the first pass

    @property
    def passes(self) -> int:
        """Return the number of passes after the first."""
        return len(self.marks) - 1

    @property
    def num_tokens(self) -> int:
        """Return the number of tokens of the passes after the first."""
        return self.marks[-1].tokens - self.marks[0].tokens

    @property
    def seconds(self) -> float:
        """Return the duration of the passes after the first."""
        return self.marks[-1].at - self.marks[0].at

    @property
    def disk_bytes(self) -> int:
        """Return the bytes read from disk by the passes after the first."""
        return self.marks[-1].disk_bytes - self.marks[0].disk_bytes


@dataclass(frozen=True)
class Outcome:
    """The outcome of one process."""

    load_s: float
    answers: tuple[Answer, ...]
    figures: dict[str, Any] = field(default_factory=dict)  # of the whole process

    def print(self) -> None:
        """Print the outcome as the last line of standard output."""
        print(json.dumps(asdict(self)), flush=True)

    @classmethod
    def parse(cls, output: str) -> "Outcome":
        """Return the outcome in the last line of a runner's output. Raises ValueError."""
        lines = output.strip().splitlines()
        if not lines:
            raise ValueError("the runner printed nothing")
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
    """A recorder of the passes of one answer."""

    def __init__(self, prompt: Prompt, ends: Sequence[int]) -> None:
        self.tokens: list[int] = []
        self._prompt = prompt
        self._ends = ends
        self._marks: list[Mark] = []
        self._began = time.perf_counter()

    def emit(self, tokens: Sequence[int]) -> bool:
        """Record a pass that emitted `tokens`; return whether the answer is complete."""
        for token in tokens:
            self.tokens.append(token)
            if self.is_complete:
                break
        self._marks.append(Mark(time.perf_counter(), len(self.tokens), disk_bytes()))
        return self.is_complete

    @property
    def is_complete(self) -> bool:
        """Return whether the answer has its end token or all of its length."""
        ended = bool(self.tokens) and self.tokens[-1] in self._ends
        return ended or len(self.tokens) >= self._prompt.max_tokens

    def answer(self, **figures: float) -> Answer:
        """Return the recorded answer, with figures of the runner."""
        label, tokens = self._prompt.label, tuple(self.tokens)
        return Answer(label, tokens, self._began, tuple(self._marks), figures)


def run(work: Callable[[Job], Outcome]) -> None:
    """Read the job from the path on the command line, do its `work` and print the outcome."""
    work(Job.read(Path(sys.argv[1]))).print()


def disk_bytes() -> int:
    """Return the bytes that this process has read from storage so far, without page cache."""
    lines = OWN_IO.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))
