"""The documents refer to what is there: files, headings, make targets and modules."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from benchmarks.first_gpu_run.stages import STAGES
from server.config.model_file import read_model_file
from server.config.settings import Settings
from tests.documentation.documents import (
    DOCUMENTS,
    ROOT,
    Block,
    anchors_of,
    blocks,
    links_of,
    text_of,
)

LANGUAGES = {"sh", "python", "yaml", "json"}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files_and_headings(document: str) -> None:
    for link in links_of(document):
        name, _, anchor = link.partition("#")
        path = (ROOT / document).parent / name if name else ROOT / document
        assert path.exists(), link
        if anchor:
            assert anchor in anchors_of(str(path.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("document", DOCUMENTS)
def test_make_targets_and_modules_exist(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    text = text_of(document)
    assert set(re.findall(r"[`\n]make ([a-z][a-z-]*)", text)) <= targets
    for module in re.findall(r"python\s-m\s(benchmarks[\w.]*)", text):
        assert importlib.util.find_spec(module) is not None, module


def test_the_gpu_document_has_every_stage_in_order() -> None:
    stages = text_of("docs/gpu.md").partition("## The stages")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in stages.splitlines() if line.startswith("| `")]
    assert re.findall(r"`(\w+)`", "".join(cells)) == [stage.name for stage in STAGES]


@pytest.mark.parametrize("block", blocks(), ids=str)
def test_blocks_are_of_a_language_that_a_test_reads(block: Block) -> None:
    assert block.language in LANGUAGES


@pytest.mark.parametrize("block", blocks("json"), ids=str)
def test_json_is_valid(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", blocks("yaml"), ids=str)
def test_yaml_is_a_file_that_the_server_reads(block: Block, tmp_path: Path) -> None:
    if "target" not in yaml.safe_load(block.text):
        Settings.model_validate(yaml.safe_load(block.text))
        return
    path = tmp_path / "models" / "documented.yaml"
    path.parent.mkdir()
    path.write_text(block.text)
    read_model_file(path)


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len(text_of("README.md").splitlines()) <= 150


def test_pictures_are_small() -> None:
    pictures = [
        path for kind in ("svg", "png", "gif") for path in (ROOT / "docs").rglob(f"*.{kind}")
    ]
    sizes = {path: path.stat().st_size for path in pictures}
    assert not [path for path, size in sizes.items() if size > 300_000]
    assert sum(sizes.values()) <= 2_000_000
