"""The models this server knows: one YAML file each, ids, aliases and the default."""

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine.errors import shown
from engine.files import find_folder
from engine.spec import ModelSpec
from server.config.files import ConfigError
from server.config.model_file import (
    HUB_ID,
    ModelFile,
    ParsersSection,
    SamplingSection,
    TargetSection,
    build_spec,
    read_model_file,
)
from server.errors import ApiError

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)*")
LONGEST_NAME = 100  # characters of an unknown name that are told back


@dataclass(frozen=True)
class ModelEntry:
    """One model that can be served."""

    id: str
    spec: ModelSpec
    created: int  # unix seconds
    sampling: SamplingSection = field(default_factory=SamplingSection)
    aliases: tuple[str, ...] = ()
    chat_template: str | None = None
    parsers: ParsersSection = field(default_factory=ParsersSection)
    path: Path | None = None  # its YAML file; None: made up from the command line


class Registry:
    """Every known model by id and alias.

    Args:
        entries: most specific folder first; a later entry never hides an earlier id or alias.
        default: id or alias that requests naming no model get; None: they are refused.
        strict: whether unknown names are refused rather than served by the default.
    """

    def __init__(
        self, entries: Iterable[ModelEntry], default: str | None = None, *, strict: bool = True
    ) -> None:
        self.entries: dict[str, ModelEntry] = {}
        for entry in entries:
            self.entries.setdefault(entry.id, entry)
        self._names: dict[str, ModelEntry] = dict(self.entries)
        for entry in self.entries.values():
            for alias in entry.aliases:
                self._names.setdefault(alias, entry)
        if default is not None and default not in self._names:
            raise ConfigError(f"default_model: {self._unknown(default)}")
        self.default = None if default is None else self._names[default]
        self._strict = strict

    def find(self, name: str | None) -> ModelEntry:
        """The entry a request names; the default for none. Raises `ApiError` 404."""
        if not name:
            if self.default is None:
                raise ApiError.missing("model", "no default model is set; name one in `model`")
            return self.default
        if name not in self._names and not self._strict and self.default is not None:
            return self.default
        return self.named(name)

    def named(self, name: str) -> ModelEntry:
        """The entry with this id or alias, whatever the default. Raises `ApiError` 404."""
        if name not in self._names:
            raise ApiError(self._unknown(name), code="model_not_found", param="model", status=404)
        return self._names[name]

    def _unknown(self, name: str) -> str:
        known = ", ".join(sorted(self.entries)) or "none"
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        return f"The model {shown!r} does not exist. Available models: {known}"


def read_entries(folders: Sequence[Path]) -> list[ModelEntry]:
    """Read `models/**/*.yaml` of each folder. Raises `ConfigError` for the first bad file."""
    return [entry for folder in folders for entry in _read_folder(folder / "models")]


def _read_folder(models: Path) -> list[ModelEntry]:
    entries: list[ModelEntry] = []
    owner: dict[str, Path] = {}
    for path in sorted(models.rglob("*.yaml")):
        entry = read_entry(path, path.relative_to(models).with_suffix("").as_posix())
        for name in (entry.id, *entry.aliases):
            if owner.setdefault(name, path) != path:
                raise ConfigError(f"{path}: aliases: {name!r} is taken by {owner[name]}")
        entries.append(entry)
    return entries


def read_entry(path: Path, model_id: str) -> ModelEntry:
    """One model file as an entry of the registry."""
    if not MODEL_ID.fullmatch(model_id):
        raise ConfigError(f"{path}: the file name is the model's id; use letters, digits, . _ -")
    file = read_model_file(path)
    return ModelEntry(
        id=model_id,
        spec=build_spec(model_id, file),
        created=int(path.stat().st_mtime),
        sampling=file.sampling,
        aliases=file.aliases,
        chat_template=file.chat_template,
        parsers=file.parsers,
        path=path,
    )


def make_entry(model: str) -> ModelEntry:
    """An entry for a folder or a hub id that has no file: the plan chooses tier and draft.

    Raises `ConfigError` when it is neither.
    """
    folder = find_folder(model)
    if folder is not None:
        source, model_id = str(folder), folder.name
        model_id = re.sub(r"[^\w.-]", "-", model_id).lstrip("._-") or "model"
    elif os.path.isfile(model):
        raise ConfigError(
            f"{shown(model)} is a file. Give the folder of a safetensors checkpoint, with its "
            "config.json (GGUF files are not read)"
        )
    elif HUB_ID.fullmatch(model):
        source = model_id = model
    else:
        raise ConfigError(
            f"{shown(model)} is neither a known model, a folder, nor a hub id (owner/name)"
        )
    file = ModelFile(target=TargetSection(source=source))
    return ModelEntry(id=model_id, spec=build_spec(model_id, file), created=int(time.time()))


def entry_yaml(entry: ModelEntry) -> str:
    """The file that gives a made-up entry: `models/<id>.yaml`."""
    source = entry.spec.target.source
    return f'target: {{source: "{source}"}}\ndraft: {{method: auto}}\n'
