"""Tests of resolving folders and hub ids to local files; every error says what to do."""

import errno
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import huggingface_hub
import pytest
from huggingface_hub import constants, errors
from huggingface_hub.errors import (
    DryRunError,
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils._paths import filter_repo_objects

from engine.errors import ModelError
from engine.messages import LoadProgress
from engine.weights import hub
from engine.weights.hub import locate, resolve
from engine.weights.identity import text_digest
from engine.weights.shards import read_index
from tests.engine.checkpoints import save_tiny

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def silent(step: LoadProgress) -> None:
    pass


# Local folders


def test_a_folder_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny("llama", tmp_path / "tiny", layers=1)
    monkeypatch.chdir(tmp_path)
    assert resolve(str(tmp_path / "tiny"), None, silent).folder == tmp_path / "tiny"
    assert resolve("tiny", None, silent).folder == tmp_path / "tiny"
    assert resolve("./tiny", "ignored", silent).folder == tmp_path / "tiny"


def change_config(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(path.read_text() + " ")


def touch_shard(folder: Path) -> None:
    os.utime(next(folder.glob("*.safetensors")), (1, 1))


def write(path: Path) -> None:
    path.write_text("{ }")


def add_shard(folder: Path) -> None:
    (folder / "other.safetensors").write_bytes(b"")


@pytest.mark.parametrize("change", [change_config, touch_shard, add_shard])
def test_a_changed_folder_has_another_identity(
    change: Callable[[Path], None], tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, layers=1)
    before = resolve(str(tmp_path), None, silent).identity
    assert resolve(str(tmp_path), None, silent).identity == before
    change(tmp_path)
    assert resolve(str(tmp_path), None, silent).identity != before


@pytest.mark.parametrize(
    "name", ["tokenizer.json", "chat_template.jinja", "generation_config.json"]
)
@pytest.mark.parametrize("change", [write, os.unlink])
def test_a_changed_text_file_changes_the_text_digest(
    name: str, change: Callable[[Path], object], tmp_path: Path
) -> None:
    for known in ("config.json", "tokenizer.json", "chat_template.jinja", "generation_config.json"):
        (tmp_path / known).write_text("{}")
    before = text_digest(tmp_path)
    assert text_digest(tmp_path) == before
    change(tmp_path / name)
    assert text_digest(tmp_path) != before


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("config.json", "config.json is missing"), ("*.safetensors", "no .*safetensors file")],
)
def test_a_folder_without_a_model_is_refused(pattern: str, message: str, tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=1)
    for path in tmp_path.glob(pattern):
        path.unlink()
    with pytest.raises(ModelError, match=f"{tmp_path}: {message}"):
        resolve(str(tmp_path), None, silent)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("pytorch_model.bin", "PyTorch files"),
        ("consolidated.00.pth", "Meta's own format"),
        ("consolidated.safetensors", "Mistral's own format"),
        ("consolidated-00001-of-00002.safetensors", "Mistral's own format"),
        ("adapter_config.json", "a LoRA adapter"),
        ("model.onnx", "an ONNX model"),
    ],
)
@pytest.mark.parametrize("has_config", [True, False])
def test_weights_of_another_kind_are_named_before_and_at_a_load(
    name: str, found: str, has_config: bool, tmp_path: Path
) -> None:
    save_tiny("llama", tmp_path, layers=1)
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    if not has_config:
        (tmp_path / "config.json").unlink()
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=f"{tmp_path}: .*the folder holds {found}"):
        read_index(locate(str(tmp_path), None))
    with pytest.raises(ModelError, match=f"{tmp_path}: .*the folder holds {found}"):
        read_index(resolve(str(tmp_path), None, silent).folder)


def test_a_folder_with_a_configuration_alone_can_be_planned_for(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path, layers=1)
    for path in tmp_path.glob("*.safetensors*"):
        path.unlink()
    assert locate(str(tmp_path), None) == tmp_path


@pytest.mark.parametrize("source", ["/nowhere/model", "./nowhere", "~/nowhere"])
def test_a_path_that_is_not_a_folder_is_not_requested_from_the_hub(source: str) -> None:
    with pytest.raises(ModelError, match=f"{source}: there is no such folder"):
        resolve(source, None, silent)


# The hub, played by a function in place of `snapshot_download`


@dataclass
class File:
    """A file of a dry run, as in huggingface_hub.DryRunFileInfo."""

    filename: str
    file_size: int
    will_download: bool
    local_path: str
    commit_hash: str = COMMIT


class FakeHub:
    """A fake of `snapshot_download`. Each of its three calls can be made to raise."""

    def __init__(self, cache: Path, names: list[str], *, cached: bool = False) -> None:
        self.folder = cache / "models--org--m" / "snapshots" / COMMIT
        self.blobs = cache / "models--org--m" / "blobs"
        self.names = names
        self.cached = cached
        self.errors: dict[str, Exception] = {}
        self.calls: list[str] = []
        self.patterns: dict[str, list[str]] = {}
        self.size = 1000

    def __call__(
        self,
        source: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        dry_run: bool = False,
        local_files_only: bool = False,
    ) -> Any:
        call = "list" if dry_run else "cached" if local_files_only else "download"
        self.calls.append(call)
        self.patterns = {"allow": allow_patterns, "ignore": ignore_patterns}
        if call in self.errors:
            raise self.errors[call]
        if dry_run:
            new = not self.cached
            return [File(n, self.size, new, str(self.folder / n)) for n in self.names]
        self.folder.mkdir(parents=True, exist_ok=True)
        self.blobs.mkdir(exist_ok=True)
        for number, name in enumerate(self.names):
            (self.blobs / str(number)).write_bytes(bytes(self.size))
            (self.folder / name).symlink_to(self.blobs / str(number))
        return str(self.folder)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = FakeHub(tmp_path, ["config.json", "model.safetensors"])
    monkeypatch.setattr(huggingface_hub, "snapshot_download", found)
    return found


@pytest.mark.parametrize("has_file", [True, False])
def test_a_plan_gets_what_names_the_format_of_the_weights(
    fake: FakeHub, monkeypatch: pytest.MonkeyPatch, has_file: bool
) -> None:
    asked: list[str] = []

    def download(source: str, name: str, *, revision: str | None) -> str:
        asked.append(name)
        if name != "config.json" and not has_file:
            raise errors.EntryNotFoundError("none")
        fake.folder.mkdir(parents=True, exist_ok=True)
        (fake.folder / name).write_text("{}")
        return str(fake.folder / name)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert locate("org/m", None) == fake.folder
    assert asked == ["config.json", "hf_quant_config.json"]


def test_a_downloaded_model_is_identified_by_its_commit(fake: FakeHub) -> None:
    told: list[LoadProgress] = []
    found = resolve("org/m", "main", told.append)
    assert found.folder == fake.folder and found.identity.split("-")[0] == COMMIT
    assert fake.calls == ["list", "download"]
    assert told[-1] == LoadProgress("downloading org/m", 2000, 2000, "bytes")


def test_an_overwritten_snapshot_has_another_identity(fake: FakeHub) -> None:
    before = resolve("org/m", "main", silent)
    weights = next(before.folder.glob("*.safetensors"))
    weights.write_bytes(b"other weights")
    fake.cached = True
    after = resolve("org/m", "main", silent).identity
    assert after != before.identity and after.startswith(COMMIT)


def test_a_cached_model_is_not_downloaded_again(fake: FakeHub) -> None:
    fake("org/m", revision=None, allow_patterns=[], ignore_patterns=[])  # fills the cache
    fake.cached, fake.calls = True, []
    assert resolve("org/m", None, silent).folder == fake.folder
    assert fake.calls == ["list"]


def test_code_pickles_and_second_copies_are_not_downloaded(fake: FakeHub) -> None:
    resolve("org/m", None, silent)
    wanted = ["model-00001-of-00002.safetensors", "config.json", "tokenizer.model"]
    wanted += ["model.safetensors.index.json", "chat_template.jinja", "merges.txt"]
    unwanted = ["modeling_m.py", "pytorch_model.bin", "model.pt", "original/model.safetensors"]
    unwanted += ["consolidated.safetensors", "tokenizer.py", "model.gguf", "README.md"]
    kept = filter_repo_objects(
        wanted + unwanted,
        allow_patterns=fake.patterns["allow"],
        ignore_patterns=fake.patterns["ignore"],
    )
    assert list(kept) == wanted


def test_a_repository_without_safetensors_is_not_downloaded(fake: FakeHub) -> None:
    fake.names = ["config.json"]
    with pytest.raises(ModelError, match=r"org/m: the repository has no \*.safetensors"):
        resolve("org/m", None, silent)
    assert fake.calls == ["list"]


def test_too_small_a_disk_is_an_error_before_the_download(fake: FakeHub) -> None:
    fake.size = 10**18
    with pytest.raises(ModelError, match=r"2000000000.00 GB are to be downloaded.* GB free"):
        resolve("org/m", None, silent)
    assert fake.calls == ["list"]


def http_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    library: Any = __import__(HfHubHTTPError.__bases__[0].__module__.split(".")[0])
    request = library.Request("GET", "https://hub.example/org/m")
    return kind("denied", response=library.Response(status, request=request))


@pytest.mark.parametrize("call", ["list", "download"])
@pytest.mark.parametrize(
    ("kind", "status", "message"),
    [
        (GatedRepoError, 403, "org/m@v1: the repository is gated.*HF_TOKEN"),
        (RepositoryNotFoundError, 404, "org/m@v1: neither a local folder nor a repository"),
        (RevisionNotFoundError, 404, "org/m: has no revision 'v1'"),
        (HfHubHTTPError, 500, "org/m@v1: the hub answers"),
    ],
)
def test_errors_of_the_hub_say_what_to_do(
    kind: type[HfHubHTTPError], status: int, message: str, call: str, fake: FakeHub
) -> None:
    error: Exception = http_error(kind, status)
    if call == "list" and kind is not RevisionNotFoundError:
        cause, error = error, DryRunError("cannot be accessed")  # as huggingface_hub does
        error.__cause__ = cause
        fake.errors["cached"] = LocalEntryNotFoundError("not cached")
    fake.errors[call] = error
    with pytest.raises(ModelError, match=message):
        resolve("org/m", "v1", silent)


def unreachable(cause: Exception) -> DryRunError:
    error = DryRunError("cannot be accessed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (OfflineModeIsEnabled("off"), "HF_HUB_OFFLINE forbids"),
        (ConnectionError("no route"), r"the hub cannot be reached \(no route\)"),
    ],
)
def test_a_model_that_is_not_cached_is_an_error_offline(
    cause: Exception, message: str, fake: FakeHub
) -> None:
    fake.errors = {"list": unreachable(cause), "cached": LocalEntryNotFoundError("not cached")}
    with pytest.raises(ModelError, match=message):
        resolve("org/m", None, silent)


def test_a_cached_model_is_found_offline(fake: FakeHub) -> None:
    fake.errors = {"list": unreachable(OfflineModeIsEnabled("off"))}
    assert resolve("org/m", None, silent).folder == fake.folder
    assert fake.calls == ["list", "cached"]


def test_a_disk_that_fills_up_during_the_download_is_an_error(fake: FakeHub) -> None:
    fake.errors["download"] = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ModelError, match="the disk is full"):
        resolve("org/m", None, silent)


def test_a_connection_that_breaks_during_the_download_is_an_error(fake: FakeHub) -> None:
    fake.errors["download"] = hub._HTTP_ERROR("connection reset")
    with pytest.raises(ModelError, match="org/m: the hub answers: connection reset"):
        resolve("org/m", None, silent)


def test_a_name_that_is_not_a_hub_id_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="'a b' is neither a folder nor a hub id"):
        resolve("a b", None, silent)


# huggingface_hub itself, offline, over a cache written by hand


def test_the_real_library_finds_a_cached_model_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"org/m: not in .* HF_HUB_OFFLINE forbids"):
        resolve("org/m", None, silent)
    repository = tmp_path / "models--org--m"
    save_tiny("llama", repository / "snapshots" / COMMIT, layers=1)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    found = resolve("org/m", None, silent)
    assert found.folder == repository / "snapshots" / COMMIT and found.identity.startswith(COMMIT)
    assert json.loads((found.folder / "config.json").read_text())["model_type"] == "llama"


@pytest.mark.parametrize("failing", ["iterdir", "stat", "is_file"])
def test_a_folder_that_cannot_be_read_is_named(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")

    def fail(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, failing, fail)
    with pytest.raises(
        ModelError, match=f"{re.escape(str(tmp_path))}: cannot be read: Input/output error"
    ):
        text_digest(tmp_path)
