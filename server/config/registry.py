"""The registry of the models that this server can load, found by id, alias or default."""

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from engine.drafting.method import facts_of
from engine.errors import shown
from engine.files import find_file, find_folder
from engine.messages import ModelInfo
from engine.spec import ModelSpec
from server.config.files import ConfigError
from server.config.model_file import (
    GGUF,
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
_PART = re.compile(r"-\d{5}-of-\d{5}$")  # of the name of a file of a split model
LONGEST_NAME = 100  # characters of an unknown name that the error repeats


@dataclass(frozen=True)
class ModelEntry:
    """A model that can be served, as its file or the command line describes it."""

    id: str
    spec: ModelSpec
    created: int  # seconds of Unix time
    sampling: SamplingSection = field(default_factory=SamplingSection)
    aliases: tuple[str, ...] = ()
    chat_template: str | None = None
    parsers: ParsersSection = field(default_factory=ParsersSection)
    idle_unload: float | None = None  # seconds without a request, then it is unloaded; None: never
    path: Path | None = None  # its YAML file; None: made from the command line
    file: ModelFile | None = None  # the settings that it was made of, if they are known


class Registry:
    """All known models, by id and by alias.

    Args:
        entries: the models, those of the most specific folder first; of two entries with the same
            id or alias, the earlier one is found by it.
        default: the id or alias of the model for requests that name none; None: they are refused.
        strict: whether unknown names are refused; otherwise the default model serves them.
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

    def __contains__(self, name: str) -> bool:
        """Return whether this is an id or an alias."""
        return name in self._names

    def find(self, name: str | None) -> ModelEntry:
        """Return the entry for the model name of a request, which is the default if it is empty.

        Raises `ApiError` if there is no default, and `ApiError` 404 for an unknown name.
        """
        if not name:
            if self.default is None:
                raise ApiError.missing("model", "no default model is set; name one in `model`")
            return self.default
        if name not in self._names and not self._strict and self.default is not None:
            return self.default
        return self.named(name)

    def named(self, name: str) -> ModelEntry:
        """Return the entry with this id or alias, never the default. Raises `ApiError` 404."""
        if name not in self._names:
            raise ApiError(self._unknown(name), code="model_not_found", param="model", status=404)
        return self._names[name]

    def _unknown(self, name: str) -> str:
        known = ", ".join(sorted(self.entries)) or "none"
        shown = name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}..."
        return f"The model {shown!r} does not exist. Available models: {known}"


def read_entries(folders: Sequence[Path]) -> list[ModelEntry]:
    """Read `models/**/*.yaml` in each folder and return the entries in the folders' order.

    Raises `ConfigError` that names all invalid files.
    """
    return [entry for folder in folders for entry in _read_folder(folder / "models")]


def _read_folder(models: Path) -> list[ModelEntry]:
    entries: list[ModelEntry] = []
    owner: dict[str, Path] = {}
    faults: list[str] = []
    for path in sorted(models.rglob("*.yaml")):
        try:
            entry = read_entry(path, path.relative_to(models).with_suffix("").as_posix())
        except ConfigError as error:
            faults.append(str(error))
            continue
        for name in (entry.id, *entry.aliases):
            if owner.setdefault(name, path) != path:
                faults.append(f"{path}: aliases: {name!r} is taken by {owner[name]}")
        entries.append(entry)
    if faults:
        raise ConfigError("\n".join(faults))
    return entries


def read_entry(path: Path, model_id: str) -> ModelEntry:
    """Read a model file and return it as an entry with the id `model_id`.

    Raises `ConfigError` if the id or the file is invalid.
    """
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
        idle_unload=file.idle_unload,
        path=path,
        file=file,
    )


def make_entry(model: str) -> ModelEntry:
    """Return an entry for a folder, GGUF file or hub id without a model file, all keys at `auto`.

    Raises `ConfigError` when `model` is none of them.
    """
    folder = find_folder(model)
    if folder is not None:
        source, model_id = str(folder), _as_id(folder.name)
    elif (weights := find_file(model, GGUF)) is not None:
        source, model_id = str(weights), _as_id(_PART.sub("", weights.stem))
    elif os.path.isfile(model):
        raise ConfigError(
            f"{shown(model)} is a file, but no *.gguf. Give a GGUF file, or the folder of a "
            "safetensors checkpoint with its config.json"
        )
    elif HUB_ID.fullmatch(model):
        source, model_id = model, model.replace(":", "-")
    else:
        raise ConfigError(
            f"{shown(model)} is neither a known model, a folder, a GGUF file, nor a hub id "
            "(owner/name, or owner/name:QUANT for GGUF)"
        )
    file = ModelFile(target=TargetSection(source=source))
    spec = build_spec(model_id, file)
    return ModelEntry(id=model_id, spec=spec, created=int(time.time()), file=file)


def _as_id(name: str) -> str:
    """Return the name of a folder or file as a model id."""
    return re.sub(r"[^\w.-]", "-", name).lstrip("._-") or "model"


def entry_yaml(entry: ModelEntry, info: ModelInfo) -> str:
    """Return the text of a model file that serves a loaded model as it is served now.

    It names what was chosen for an entry that `make_entry` made: the drafting method, and the
    sampling defaults of the model's generation_config.json.
    """
    draft = {"method": info.draft_method}
    used = facts_of(info.draft_method).keys
    draft |= {key: getattr(entry.spec.draft, key) for key in ("bits", "group") if key in used}
    sections: dict[str, Any] = {"target": {"source": entry.spec.target.source}, "draft": draft}
    if info.sampling:
        sections["sampling"] = dict(info.sampling)
    return yaml.safe_dump(sections, default_flow_style=None, sort_keys=False, allow_unicode=True)


def planned_yaml(entry: ModelEntry, method: str, device_memory: int | None, ram: int | None) -> str:
    """Return the text of a model file that serves a model as it was planned.

    It has the settings of the entry, the drafting method of the plan, and the limits of memory that
    were asked about; None leaves a limit as it is.
    """
    file = entry.file or ModelFile(target=TargetSection(source=entry.spec.target.source))
    sections = file.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    sections["draft"] = {**sections.get("draft", {}), "method": method}
    limits = {"device": device_memory, "ram": ram}
    asked = {key: _size_text(nbytes) for key, nbytes in limits.items() if nbytes is not None}
    if asked:
        sections["memory"] = {**sections.get("memory", {}), **asked}
    return yaml.safe_dump(sections, default_flow_style=None, sort_keys=False, allow_unicode=True)


def _size_text(nbytes: int) -> str | int:
    """Return a size as text that `parse_size` reads, or as bytes where no unit divides it."""
    units = (("TiB", 40), ("GiB", 30), ("MiB", 20))
    return next(
        (f"{nbytes >> bits}{unit}" for unit, bits in units if nbytes % (1 << bits) == 0), nbytes
    )
