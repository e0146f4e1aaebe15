"""Models in GGUF files are found by their path, in a folder, and in a repository of the hub."""

import json
import os
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from engine.cache_files import INDEX
from engine.errors import ModelError
from engine.messages import LoadProgress
from engine.streaming.packed_cache import entries, remove
from engine.weights.gguf_source import choose_files, quantizations
from engine.weights.hub import locate, resolve
from engine.weights.identity import identity_of
from engine.weights.shards import has_weights
from tests.engine.checkpoints import save_tiny
from tests.engine.gguf_files import write_gguf


def silent(step: LoadProgress) -> None:
    pass


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a GGUF file in a folder of its own."""
    folder = tmp_path_factory.mktemp("gguf")
    original = save_tiny("llama", folder / "original", layers=1)
    (folder / "own").mkdir()
    return write_gguf(original, folder / "own" / "tiny.gguf")


def copy_of(written: Path, folder: Path, *names: str) -> list[Path]:
    """Put the file into a folder under other names."""
    for name in names:
        (folder / name).write_bytes(written.read_bytes())
    return [folder / name for name in names]


def test_a_file_and_its_folder_are_the_same_model(
    written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(written.parent)
    by_path = resolve(str(written), None, silent)
    assert has_weights(by_path.folder) and by_path.folder.name.startswith("tiny-")
    for source in (str(written.parent), "tiny.gguf", "./tiny.gguf", "."):
        assert resolve(source, None, silent) == by_path
        assert locate(source, None) == by_path.folder


def test_projectors_are_passed_over_and_split_models_are_one(written: Path, tmp_path: Path) -> None:
    (model, _) = copy_of(written, tmp_path, "m.gguf", "mmproj-m-f16.gguf")
    assert resolve(str(tmp_path), None, silent) == resolve(str(model), None, silent)
    copy_of(written, tmp_path, "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf")
    with pytest.raises(ModelError, match=r"several models: m-Q8_0-00001-of-00002\.gguf, m\.gguf"):
        resolve(str(tmp_path), None, silent)


def test_a_folder_with_safetensors_is_read_as_such(written: Path, tmp_path: Path) -> None:
    folder = save_tiny("llama", tmp_path, layers=1)
    copy_of(written, tmp_path, "m.gguf")
    assert resolve(str(folder), None, silent).folder == folder


def test_a_folder_with_only_a_projector_is_refused(written: Path, tmp_path: Path) -> None:
    copy_of(written, tmp_path, "mmproj.gguf")
    with pytest.raises(ModelError, match=r"mmproj\.gguf is a projector"):
        resolve(str(tmp_path), None, silent)


def test_a_changed_file_is_another_model(written: Path, tmp_path: Path) -> None:
    (path,) = copy_of(written, tmp_path, "m.gguf")
    before = resolve(str(path), None, silent)
    assert resolve(str(path), None, silent) == before
    os.utime(path, (1, 1))
    after = resolve(str(path), None, silent)
    assert after.folder != before.folder and after.identity != before.identity
    with pytest.raises(ModelError, match=r"m\.gguf: was changed"):
        identity_of(before.folder)


def test_the_folder_is_an_entry_of_the_cache_and_made_again(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path))
    folder = resolve(str(written), None, silent).folder
    (entry,) = entries()
    assert (entry.path, entry.model, entry.is_packed) == (folder, "tiny", False)
    assert entry.is_usable
    remove(entry)
    assert entries() == [] and not folder.exists() and written.exists()
    assert resolve(str(written), None, silent).folder == folder
    (folder / INDEX).unlink()  # as when its removal was interrupted
    assert resolve(str(written), None, silent).folder == folder and len(entries()) == 1


def test_folders_of_files_that_are_gone_are_listed_and_removed_later(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    paths = copy_of(written, tmp_path, "moved.gguf", "changed.gguf", "kept.gguf", "late.gguf")
    made = [resolve(str(path), None, silent).folder for path in paths]
    paths[0].rename(tmp_path / "elsewhere.gguf")
    os.utime(paths[1], (1, 1))
    paths[3].unlink()
    usable = {entry.path: entry.is_usable for entry in entries()}
    assert usable == dict(zip(made, (False, False, True, False), strict=True))
    for folder in made[:3]:
        os.utime(folder / INDEX, (0, 0))  # not used for a long time
    other = resolve(str(tmp_path / "elsewhere.gguf"), None, silent).folder
    assert {entry.path for entry in entries()} == {made[2], made[3], other}


def test_a_cache_that_cannot_be_written_to_is_named(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="Set UNDERSTUDY_CACHE to a folder"):
        resolve(str(written), None, silent)


def test_sampling_defaults_and_eos_ids_come_from_the_metadata(tmp_path: Path) -> None:
    original = save_tiny("llama", tmp_path / "original", layers=1)

    def change(writer: Any) -> None:
        writer.add_float32("general.sampling.temp", 0.6)
        writer.add_int32("general.sampling.top_k", 20)

    path = write_gguf(original, tmp_path / "m.gguf", change=change)
    folder = resolve(str(path), None, silent).folder
    found = json.loads((folder / "generation_config.json").read_text())
    assert found == {"eos_token_id": [1], "temperature": 0.6, "top_k": 20}


# The hub

NAMES = [
    "README.md",
    "m-Q4_K_M.gguf",
    "m-Q4_K_S.gguf",
    "m.Q8_0.gguf",
    "m-IQ4_XS.gguf",
    "BF16/m-BF16-00001-of-00002.gguf",
    "BF16/m-BF16-00002-of-00002.gguf",
    "mmproj-m-F16.gguf",
    "m-UD-Q2_K_XL-00001-of-00003.gguf",
]


@pytest.mark.parametrize(
    ("quant", "chosen"),
    [
        ("Q4_K_M", ["m-Q4_K_M.gguf"]),
        ("q4_k_m", ["m-Q4_K_M.gguf"]),
        ("Q8_0", ["m.Q8_0.gguf"]),
        ("BF16", NAMES[5:7]),
        ("IQ4_XS", ["m-IQ4_XS.gguf"]),
    ],
)
def test_the_files_of_a_quantization_are_chosen(quant: str, chosen: list[str]) -> None:
    assert choose_files("org/m", quant, NAMES) == chosen


@pytest.mark.parametrize(
    ("quant", "message"),
    [
        ("Q4_K", "no GGUF file for 'Q4_K'. It has: BF16, IQ4_XS, Q4_K_M, Q4_K_S"),
        ("F16", "no GGUF file for 'F16'"),
        ("m", r"several files for m. It has: BF16/m-BF16-00001-of-00002.gguf, m-IQ4_XS"),
        ("UD-Q2_K_XL", "lacks m-UD-Q2_K_XL-00002-of-00003.gguf"),
    ],
)
def test_a_quantization_that_names_no_single_model_is_refused(quant: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"org/m: the repository .*{message}"):
        choose_files("org/m", quant, NAMES)


def test_quantizations_are_listed_once() -> None:
    assert quantizations(["a-Q4_0.gguf", "b/a-q4_0.gguf", "a-F16.gguf", "a.gguf"]) == [
        "Q4_0",
        "F16",
    ]


def test_only_the_chosen_files_are_downloaded(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--org--m" / "snapshots" / ("0" * 40)
    asked: list[list[str]] = []

    class File:
        def __init__(self, name: str) -> None:
            self.filename, self.file_size, self.will_download = name, 1000, True
            self.local_path, self.commit_hash = str(snapshot / name), "0" * 40

    def download(source: str, **options: Any) -> Any:
        assert source == "org/m"
        if options.get("dry_run"):
            return [File(name) for name in NAMES]
        asked.append(options["allow_patterns"])
        for name in options["allow_patterns"]:
            (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / name).write_bytes(written.read_bytes())
        return str(snapshot)

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = resolve("org/m:q8_0", None, silent)
    assert asked == [["m.Q8_0.gguf"]]
    assert found.folder.name.startswith("m.Q8_0-") and has_weights(found.folder)
    with pytest.raises(ModelError, match="org/m: the repository has no GGUF file for 'Q5_0'"):
        locate("org/m:Q5_0", None)
