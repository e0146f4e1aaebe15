"""A model's config.json without its weights: a folder's, the cached one, or only that file."""

import json
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import LocalEntryNotFoundError

from engine.errors import ModelError
from engine.weights.hub import told
from engine.weights.safetensors import INDEX_NAME

CONFIG = "config.json"


@dataclass(frozen=True)
class Located:
    """Where a model's config.json is, and whether its weights lie beside it."""

    folder: Path
    has_weights: bool


def locate(source: str, revision: str | None) -> Located:
    """The folder of a model's config.json; of a hub id that is not cached, that file is fetched.

    Raises `ModelError` when there is none.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
    elif folder.is_absolute() or source.startswith((".", "~")):
        raise ModelError(f"{source}: there is no such folder")
    else:
        folder = _cached(source, revision) or _fetched(source, revision)
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder}: {CONFIG} is missing: this is no model folder")
    return Located(folder, has_weights(folder))


def has_weights(folder: Path) -> bool:
    """Whether all safetensors files are there that the index, if there is one, names."""
    index = folder / INDEX_NAME
    if not index.is_file():
        return any(folder.glob("*.safetensors"))
    try:
        files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{index}: corrupt ({error!r}). Download it again") from error
    return all((folder / name).is_file() for name in files)


def _cached(source: str, revision: str | None) -> Path | None:
    with told(source, revision):
        path = huggingface_hub.try_to_load_from_cache(source, CONFIG, revision=revision)
    return Path(path).parent if isinstance(path, str) else None


def _fetched(source: str, revision: str | None) -> Path:
    with told(source, revision):
        try:
            return Path(huggingface_hub.hf_hub_download(source, CONFIG, revision=revision)).parent
        except LocalEntryNotFoundError as error:
            raise ModelError(
                f"{source}: its {CONFIG} is not cached, and the hub cannot be reached. Check the "
                "network and HF_HUB_OFFLINE, or give a folder with a config.json"
            ) from error
