"""docs/settings.md lists exactly the keys that the code reads, with their defaults."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from engine.weights.gguf_config import ARCHITECTURES
from engine.weights.gguf_file import TYPES
from server.config.environment import OF_OTHERS, OF_SETTINGS, VARIABLES
from server.config.files import Section
from server.config.model_file import ModelFile
from server.config.settings import Settings

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
AUTO = ModelFile.model_fields["numerics"].metadata[0]  # what marks a key that takes `auto`


def rows_below(heading: str) -> dict[str, str]:
    """Return the defaults by key of the first table below a heading."""
    text = DOCUMENT.split(f"## {heading}", 1)[1]
    found = re.search(r"\| key \| default .*\n\| ---.*\n((?:\|.*\n)+)", text)
    assert found is not None, f"no table below {heading!r}"
    cells = [[cell.strip() for cell in row.split("|")[1:3]] for row in found[1].splitlines()]
    return {key.strip("`"): default.strip("`") for key, default in cells}


def defaults_of(section: type[Section], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield each key of a section and its subsections, and its default as the table writes it."""
    for name, field in section.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Section):
            yield from defaults_of(inner, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", written(name, field)


def written(name: str, field: FieldInfo) -> str:
    value: Any = field.default
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "auto" if AUTO in field.metadata else "none"
    if value == ():
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if name.endswith("_bytes"):
        return f"{value // 2**20}MiB"
    if name == "kv_disk":
        return f"{value // 2**30}GiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize(
    ("heading", "section"),
    [("The server: `understudy.yaml`", Settings), ("A model: `models/<id>.yaml`", ModelFile)],
)
def test_the_table_has_every_key_with_its_default(heading: str, section: type[Section]) -> None:
    assert rows_below(heading) == dict(defaults_of(section))


def test_the_document_names_every_environment_variable() -> None:
    sources = [*ROOT.glob("server/**/*.py"), *ROOT.glob("engine/**/*.py")]
    found = {
        name
        for source in sources
        for name in re.findall(r"\bUNDERSTUDY_[A-Z_]*[A-Z]\b", source.read_text(encoding="utf-8"))
        if not OF_OTHERS.match(name)
    }
    assert found <= VARIABLES
    assert all(f"`{name}`" in DOCUMENT for name in VARIABLES - OF_SETTINGS)


def test_the_packaged_file_shows_every_key_but_insecure() -> None:
    text = (ROOT / "configs" / "understudy.yaml").read_text(encoding="utf-8")
    keys = set(re.findall(r"^(?:# )?([a-z_]+): ", text, re.MULTILINE))
    assert keys == set(Settings.model_fields) - {"insecure"}


def test_the_types_and_families_of_gguf_files_are_listed() -> None:
    (row,) = (line for line in DOCUMENT.splitlines() if line.startswith("| GGUF |"))
    for name in (*(type_.name for type_ in TYPES.values()), *ARCHITECTURES):
        assert re.search(rf"\b{name}\b", row), name
