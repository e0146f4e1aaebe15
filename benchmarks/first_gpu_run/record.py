"""The JSON file of a stage: what it measured so far, and how it ended. Imports no torch."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["running", "done", "skipped", "failed", "out of time"]


@dataclass(frozen=True)
class Record:
    """The content of a stage's file.

    Args:
        reason: why the stage was skipped, failed, or ended early; may have several lines.
    """

    stage: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    results: Mapping[str, Any] = field(default_factory=dict)


class Results(dict[str, Any]):
    """The figures of a stage by name. The file is written whenever a name gets a value."""

    def __init__(self, save: Callable[[], None]) -> None:
        super().__init__()
        self._save = save

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._save()


def read_record(folder: Path, stage: str) -> Record | None:
    """Return the record of a stage, or None if it has no file."""
    path = _path(folder, stage)
    return Record(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def write_record(folder: Path, record: Record) -> None:
    """Write a record in one step, so that no reader sees a part of it."""
    path = _path(folder, record.stage)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(vars(record), indent=1, default=str), encoding="utf-8")
    partial.replace(path)


def _path(folder: Path, stage: str) -> Path:
    return folder / f"{stage}.json"
