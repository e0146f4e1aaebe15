"""Where a model's files are: a local folder, or a snapshot of a hub repository.

`HF_HOME`, `HF_TOKEN` and `HF_HUB_OFFLINE` act as in every tool that uses huggingface_hub.
"""

import errno
import hashlib
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from engine.errors import ModelError
from engine.messages import ReportProgress

_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.model", "*.txt", "tokenizer*"]
# no code and no pickles; no second copy of the weights in a subfolder or in Mistral's own format
_UNWANTED = ["*.py", "*.bin", "*.pt", "*.pth", "*.gguf", "*/*", "consolidated*.safetensors"]
_SNAPSHOT = re.compile(r"snapshots/([0-9a-f]{40})$")
_REPORT_SECONDS = 0.5
# the root error of the HTTP package that the installed release is built on (httpx, httpx2)
_HTTP_ERROR = cast(type[Exception], HfHubHTTPError.__bases__[0])


@dataclass(frozen=True)
class Resolved:
    """The files of a model."""

    folder: Path
    identity: str  # the commit, or a fingerprint of a local folder: changes when the files do


def resolve(source: str, revision: str | None, progress: ReportProgress) -> Resolved:
    """The local files of a model: `source` itself if it is a folder, else the hub's snapshot.

    A hub id is downloaded unless it is cached, `progress` being told the bytes. Raises
    `ModelError` when the repository or revision is not found or gated, the hub cannot be reached,
    the disk is too small, or the model has no safetensors weights.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        folder = folder.resolve()
    elif folder.is_absolute() or source.startswith((".", "~")):
        raise ModelError(f"{source}: there is no such folder")
    else:
        with told(source, revision):
            folder = _snapshot(source, revision, progress)
    _check(folder)
    return Resolved(folder, _identity(folder))


def _identity(folder: Path) -> str:
    """The commit of a hub snapshot; else a fingerprint of config.json's text and of every
    safetensors file's name, size and time of change."""
    if commit := _SNAPSHOT.search(folder.as_posix()):
        return commit[1]
    digest = hashlib.blake2b((folder / "config.json").read_bytes(), digest_size=20)
    for path in sorted(folder.glob("*.safetensors")):
        status = path.stat()
        digest.update(f"\0{path.name}\0{status.st_size}\0{status.st_mtime_ns}".encode())
    return digest.hexdigest()


def _check(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder}: config.json is missing: this is no model folder")
    if not any(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder}: no *.safetensors file. Only safetensors weights are read: convert other "
            "formats with save_pretrained"
        )


def _snapshot(source: str, revision: str | None, progress: ReportProgress) -> Path:
    try:
        files = _list(source, revision)
    except DryRunError as error:  # the hub cannot be asked: what is cached must do
        return _cached(source, revision, error.__cause__)
    if not any(file.filename.endswith(".safetensors") for file in files):
        raise ModelError(
            f"{source}: the repository has no *.safetensors file. Use a repository with "
            "safetensors weights, or convert it with save_pretrained"
        )
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    if not missing:
        return Path(files[0].local_path).parent
    cache = Path(constants.HF_HUB_CACHE)
    _check_space(source, cache, missing)
    total = sum(file.file_size or 0 for file in files)
    blobs = cache / f"models--{source.replace('/', '--')}" / "blobs"
    with _reporting(f"downloading {source}", blobs, total - missing, total, progress):
        return Path(_download(source, files[0].commit_hash))


def _list(source: str, revision: str | None) -> list[Any]:
    """The wanted files of the repository, their sizes, and whether they are cached."""
    return huggingface_hub.snapshot_download(
        source,
        revision=revision,
        allow_patterns=_WANTED,
        ignore_patterns=_UNWANTED,
        dry_run=True,
    )


def _download(source: str, revision: str | None, *, local_files_only: bool = False) -> str:
    disable_progress_bars()
    return huggingface_hub.snapshot_download(
        source,
        revision=revision,
        allow_patterns=_WANTED,
        ignore_patterns=_UNWANTED,
        local_files_only=local_files_only,
    )


def _cached(source: str, revision: str | None, cause: BaseException | None) -> Path:
    try:
        return Path(_download(source, revision, local_files_only=True))
    except LocalEntryNotFoundError as error:
        # not reachable and not cached: tell why it could not be reached
        if isinstance(cause, OfflineModeIsEnabled):
            raise ModelError(
                f"{source}: not in {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to "
                "download it. Unset HF_HUB_OFFLINE once, or give a local folder"
            ) from error
        if isinstance(cause, HfHubHTTPError):
            raise cause from error
        raise ModelError(
            f"{source}: not in {constants.HF_HUB_CACHE}, and the hub cannot be reached ({cause}). "
            "Check the network, or give a local folder"
        ) from error


def _check_space(source: str, cache: Path, missing: int) -> None:
    place = next(path for path in (cache, *cache.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if free < missing:
        raise ModelError(
            f"{source}: {missing / 1e9:.2f} GB are to be downloaded to {cache}, which has "
            f"{free / 1e9:.2f} GB free. Free some space or set HF_HOME to a larger disk"
        )


@contextmanager
def told(source: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's errors into `ModelError`s that say what to do."""
    place = f"{source}@{revision}" if revision else source
    try:
        yield
    except HFValidationError as error:
        raise ModelError(f"{source!r} is neither a folder nor a hub id (owner/name)") from error
    except GatedRepoError as error:
        raise ModelError(
            f"{place}: the repository is gated. Accept its terms on huggingface.co/{source}, then "
            "set HF_TOKEN to a token of that account"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelError(f"{source}: has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"{place}: neither a local folder nor a repository of the hub that can be seen. Check "
            "the name; a private one needs HF_TOKEN"
        ) from error
    except _HTTP_ERROR as error:
        raise ModelError(f"{place}: the hub answers: {error}. Try again later") from error
    except LocalEntryNotFoundError as error:
        raise ModelError(f"{place}: the download broke off: {error}. Try again") from error
    except OSError as error:
        hint = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise ModelError(f"{place}: download into {constants.HF_HUB_CACHE}: {hint}") from error


@contextmanager
def _reporting(
    what: str, blobs: Path, cached: int, total: int, progress: ReportProgress
) -> Iterator[None]:
    """Tell `progress` how many bytes have arrived in `blobs` until the block is left.

    The folder's size is watched because the library's own counters differ from release to release.
    """
    start = _size(blobs)
    over = threading.Event()

    def report() -> None:
        while True:
            finished = over.wait(_REPORT_SECONDS)
            progress(what, min(total, max(0, cached + _size(blobs) - start)), total)
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
    """Bytes of the files in a folder, zero if it is not there; files may vanish meanwhile."""
    total = 0
    for path in folder.glob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total
