"""Finding a model's files: in a local folder, or in a snapshot of a hub repository.

`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` work as in every tool that uses huggingface_hub.
"""

import errno
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import huggingface_hub
from huggingface_hub import constants, errors
from huggingface_hub.utils.tqdm import disable_progress_bars

from engine.errors import ModelError, shown
from engine.files import find_folder
from engine.messages import LoadProgress, ReportProgress
from engine.weights.config_file import MODELOPT_NAME
from engine.weights.gguf_folder import gguf_folder
from engine.weights.gguf_source import SUFFIX, choose_files, find_gguf, split_source
from engine.weights.identity import identity_of
from engine.weights.shards import advice, other_weights

_CONFIG = "config.json"
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*"]
# Code, pickles, and second copies of the weights in a subfolder or in Mistral's own format.
_UNWANTED = ["*.py", "*.bin", "*.pt", "*.pth", "*.gguf", "*/*", "consolidated*.safetensors"]
_REPORT_SECONDS = 0.5
# The root error of the HTTP package that the installed release is built on (httpx, httpx2).
_HTTP_ERROR = cast(type[Exception], errors.HfHubHTTPError.__bases__[0])


@dataclass(frozen=True)
class Resolved:
    """The local folder of a model, and the identity of its weights."""

    folder: Path
    identity: str  # changes when the weights do; begins with the commit of a snapshot


def resolve(source: str, revision: str | None, progress: ReportProgress) -> Resolved:
    """Return the local files of a model: `source` if it is a folder, else the hub's snapshot.

    For a GGUF file, a folder with one, or `owner/name:QUANT` of the hub, it is the folder that is
    made of the file's metadata. A model of the hub is downloaded unless it is cached, and
    `progress` is called with the bytes. Raises `ModelError` if the repository or revision is not
    found or gated, the hub cannot be reached, the disk is too small, or the model has no weights
    that can be read.
    """
    if (made := _gguf_folder(source, revision, progress)) is not None:
        return Resolved(made, identity_of(made))
    folder = _find(source, revision, partial(_snapshot, source, revision, progress))
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{folder}: no *.safetensors file. {advice(folder)}")
    return Resolved(folder, identity_of(folder))


def locate(source: str, revision: str | None) -> Path:
    """Return the folder of a model's config.json, which is downloaded if it is not cached.

    Of a model in GGUF files, the files themselves are needed. Raises `ModelError` if there is none.
    """
    if (made := _gguf_folder(source, revision, lambda *_: None)) is not None:
        return made
    folder = _find(source, revision, partial(_config_folder, source, revision))
    # A folder with config.json alone can be planned for, as a repository can before a download.
    has_weights = any(folder.glob("*.safetensors"))
    if not has_weights and _local_folder(source) and (found := other_weights(folder)):
        raise ModelError(f"{folder}: no *.safetensors file. {found}")
    return folder


def _gguf_folder(source: str, revision: str | None, progress: ReportProgress) -> Path | None:
    """Return the folder that is made for a source in GGUF files; None if it is in others."""
    path = find_gguf(source)
    if path is None and (parts := split_source(source)) is not None:
        with _explained(source, revision):
            path = _gguf_snapshot(*parts, revision, progress)
    return None if path is None else gguf_folder(path)


def _find(source: str, revision: str | None, fetch: Callable[[], Path]) -> Path:
    """Return the folder `source`, or the one that `fetch` gets from the hub, with a config.json.

    Errors of the hub are raised as `ModelError`s that say what to do.
    """
    folder = _local_folder(source)
    if folder is None:
        with _explained(source, revision):
            folder = fetch()
    if not (folder / _CONFIG).is_file():
        raise ModelError(f"{folder}: {_CONFIG} is missing or no file. {advice(folder)}")
    return folder


def _local_folder(source: str) -> Path | None:
    """Return `source` as a folder, or None if it is the name of a repository."""
    if (folder := find_folder(source)) is not None:
        return folder
    if source.startswith((".", "/", "~")):
        raise ModelError(f"{source}: there is no such folder")
    return None


def _config_folder(source: str, revision: str | None) -> Path:
    """Return the cached snapshot of a repository, or one with only config.json downloaded."""
    path = huggingface_hub.try_to_load_from_cache(source, _CONFIG, revision=revision)
    if not isinstance(path, str):
        try:
            path = huggingface_hub.hf_hub_download(source, _CONFIG, revision=revision)
            with suppress(errors.EntryNotFoundError):  # few repositories have it
                huggingface_hub.hf_hub_download(source, MODELOPT_NAME, revision=revision)
        except errors.LocalEntryNotFoundError as error:
            raise ModelError(
                f"{source}: its {_CONFIG} is not cached, and the hub cannot be reached. Check the "
                "network and HF_HUB_OFFLINE, or give a folder with a config.json"
            ) from error
    return Path(path).parent


def _snapshot(source: str, revision: str | None, progress: ReportProgress) -> Path:
    """Return the snapshot of a repository, after downloading the files that are missing."""
    try:
        # The wanted files, their sizes, and whether they are cached.
        files: list[Any] = _download(source, revision, _WANTED, dry_run=True)
    except errors.DryRunError as error:  # the hub cannot be reached: use the cached files
        return _cached(source, revision, _WANTED, error.__cause__)
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{source}: the repository has no *.safetensors file. Use a repository with "
            "safetensors weights, or convert it with save_pretrained. For a repository of GGUF "
            f"files add the quantization: {source}:Q4_K_M"
        )
    return _fetch(source, files, _WANTED, progress)


def _gguf_snapshot(source: str, quant: str, revision: str | None, progress: ReportProgress) -> Path:
    """Return the first GGUF file of a repository for a quantization, after downloading it."""
    everything = [f"*{SUFFIX}"]
    try:
        files: list[Any] = _download(source, revision, everything, dry_run=True)
    except errors.DryRunError as error:
        folder = _cached(source, revision, everything, error.__cause__)
        names = [path.relative_to(folder).as_posix() for path in folder.rglob(f"*{SUFFIX}")]
        return folder / choose_files(source, quant, names)[0]
    names = choose_files(source, quant, [file.filename for file in files])
    chosen = [file for file in files if file.filename in names]
    folder = _fetch(source, chosen, names, progress)
    return folder / names[0]


def _fetch(
    source: str, files: Sequence[Any], wanted: Sequence[str], progress: ReportProgress
) -> Path:
    """Return the snapshot with these files of a dry run, after downloading the missing ones."""
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    if not missing:
        file = files[0]
        return Path(file.local_path).parents[str(file.filename).count("/")]
    cache = Path(constants.HF_HUB_CACHE)
    _check_space(source, cache, missing)
    total = sum(file.file_size or 0 for file in files)
    blobs = cache / f"models--{source.replace('/', '--')}" / "blobs"
    with _reporting(f"downloading {source}", blobs, total - missing, total, progress):
        return Path(_download(source, files[0].commit_hash, wanted))


def _download(source: str, revision: str | None, wanted: Sequence[str], **how: Any) -> Any:
    """Download the wanted files and return their folder; `how` are options of the library."""
    disable_progress_bars()
    unwanted = _UNWANTED if wanted is _WANTED else None
    return huggingface_hub.snapshot_download(
        source, revision=revision, allow_patterns=list(wanted), ignore_patterns=unwanted, **how
    )


def _cached(
    source: str, revision: str | None, wanted: Sequence[str], cause: BaseException | None
) -> Path:
    """Return the cached snapshot. Raises `ModelError` with the `cause` of the missing download."""
    try:
        return Path(_download(source, revision, wanted, local_files_only=True))
    except errors.LocalEntryNotFoundError as error:
        # The model is neither cached nor reachable: say why it could not be reached.
        if isinstance(cause, errors.OfflineModeIsEnabled):
            raise ModelError(
                f"{source}: not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to "
                "download it. Unset HF_HUB_OFFLINE once, or give a local folder"
            ) from error
        if isinstance(cause, errors.HfHubHTTPError):
            raise cause from error
        raise ModelError(
            f"{source}: not in {constants.HF_HUB_CACHE}, and the hub cannot be reached ({cause}). "
            "Check the network, or give a local folder"
        ) from error


def _check_space(source: str, cache: Path, missing: int) -> None:
    """Raise `ModelError` if the disk of the cache has fewer free bytes than are missing."""
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < missing:
        raise ModelError(
            f"{source}: {missing / 1e9:.2f} GB are to be downloaded to {cache}, which has "
            f"{free / 1e9:.2f} GB free. Free some space or set HF_HOME to a larger disk"
        )


@contextmanager
def _explained(source: str, revision: str | None) -> Iterator[None]:
    """Turn the errors of the hub in the block into `ModelError`s that say what to do."""
    try:
        yield
    except (OSError, errors.HFValidationError, _HTTP_ERROR) as error:
        raise ModelError(_explanation(error, source, revision)) from error


def _explanation(error: Exception, source: str, revision: str | None) -> str:
    """Return a message about an error of the hub that says what to do."""
    place = f"{source}@{revision}" if revision else source
    match error:  # derived classes before their base classes
        case errors.HFValidationError():
            return f"{shown(source)} is neither a folder nor a hub id (owner/name)"
        case errors.GatedRepoError():
            return (
                f"{place}: the repository is gated. Accept its terms on huggingface.co/{source}, "
                "then set HF_TOKEN to a token of that account"
            )
        case errors.RevisionNotFoundError():
            return f"{source}: has no revision {revision!r}"
        case errors.RepositoryNotFoundError():
            return (
                f"{place}: neither a local folder nor a repository of the hub that can be seen. "
                "Check the name; a private one needs HF_TOKEN"
            )
        case _ if isinstance(error, _HTTP_ERROR):
            return f"{place}: the hub answers: {error}. Try again later"
        case errors.LocalEntryNotFoundError():
            return f"{place}: the download broke off: {error}. Try again"
    is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    hint = "the disk is full" if is_full else str(error)
    return f"{place}: download into {constants.HF_HUB_CACHE}: {hint}"


@contextmanager
def _reporting(
    what: str, blobs: Path, cached: int, total: int, progress: ReportProgress
) -> Iterator[None]:
    """Enter a block that downloads; report to `progress` how many bytes are in the folder `blobs`.

    The size of the folder is measured, because the library's own counters differ between releases.
    """
    start = _size(blobs)
    over = threading.Event()

    def report() -> None:
        while True:
            finished = over.wait(_REPORT_SECONDS)
            done = min(total, max(0, cached + _size(blobs) - start))
            progress(LoadProgress(what, done, total))
            if finished:
                return

    thread = threading.Thread(target=report, name="download-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _size(folder: Path) -> int:
    """Return the bytes of a folder's files, 0 if it does not exist. Files may vanish meanwhile."""
    total = 0
    for path in folder.glob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
