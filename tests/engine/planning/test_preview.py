"""A plan refuses the files that loading refuses, with the same words."""

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.errors import ModelError
from engine.planning import probe
from engine.planning.preview import WhatIf, preview
from engine.runtime.target_files import TargetFiles
from engine.spec import ModelSpec, TargetSpec
from tests.engine.checkpoints import save_tiny
from tests.engine.gguf_files import rewrite, write_gguf
from tests.engine.models import add_tokenizer

CARD = WhatIf(device_memory=8 << 30, ram=8 << 30)  # nothing is measured for another machine


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(ModelError) as caught:
        call()
    return str(caught.value)


def unread(folder: Path) -> None:
    (folder / "tokenizer.json").write_text('{"model": null}')


def missing(folder: Path) -> None:
    for path in folder.glob("*token*"):
        path.unlink()


def unlisted(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text("[]")


def cut_off(folder: Path) -> None:
    missing(folder)
    (folder / "tokenizer.model").write_bytes(b"\n\x03\x0a\x01a")


def generated(folder: Path) -> None:
    (folder / "generation_config.json").write_text("{")


@pytest.mark.parametrize("damage", [unread, missing, unlisted, cut_off, generated])
def test_text_files_that_loading_refuses_are_refused_with_the_same_words(
    damage: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny("llama", tmp_path, layers=1)
    add_tokenizer(folder)
    spec = ModelSpec("m", TargetSpec(str(folder)))
    assert preview(spec, CARD).has_weights
    damage(folder)
    measured: list[object] = []
    monkeypatch.setattr(probe, "pass_times", lambda *_: measured.append(1))
    said = reason(lambda: preview(spec, WhatIf()))
    assert said == reason(lambda: TargetFiles(spec, lambda *_: None))
    assert str(folder) in said and measured == []
    for weights in folder.glob("*.safetensors*"):  # as before a download
        weights.unlink()
    assert not preview(spec, CARD).has_weights


def test_the_tokenizer_of_a_gguf_file_is_named_by_that_file(tmp_path: Path) -> None:
    whole = write_gguf(save_tiny("llama", tmp_path / "m", layers=1), tmp_path / "whole.gguf")
    path = rewrite(whole, tmp_path / "m.gguf", {"tokenizer.ggml.merges": ["no token"]})
    spec = ModelSpec("m", TargetSpec(str(path)))
    said = reason(lambda: preview(spec, CARD))
    assert said.startswith(f"{path}: tokenizer.ggml: cannot be used: ") and "token" in said
    assert said == reason(lambda: TargetFiles(spec, lambda *_: None))
