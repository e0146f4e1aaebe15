"""docs/clients.md: its files can be read, and tests use every section and the versions it names."""

import ast
import json
import re
import tomllib
from collections.abc import Callable

import pytest
import yaml

from tests.clients.documented import headings
from tests.documentation.documents import ROOT, RUN_BY_CLIENTS, Block, blocks_of, text_of

READERS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "toml": tomllib.loads,
    "yaml": yaml.safe_load,
}
CLIENTS = ROOT / "tests" / "clients"


@pytest.mark.parametrize("block", list(blocks_of(RUN_BY_CLIENTS)), ids=str)
def test_files_can_be_read(block: Block) -> None:
    if block.language != "sh":
        assert READERS[block.language](block.text)


@pytest.mark.parametrize("heading", headings())
def test_a_test_uses_the_section(heading: str) -> None:
    texts = {
        node.value
        for path in CLIENTS.glob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
    }
    assert heading in texts


def test_the_versions_are_those_that_are_tested() -> None:
    install = r"`(?:npm install -g|pip install) (\S+)`, tried with ([\d.]+\d)"
    named = re.findall(install, text_of(RUN_BY_CLIENTS))
    tested: dict[str, str] = {}
    for path in (CLIENTS / "agents").glob("*.json"):
        tested |= json.loads(path.read_text(encoding="utf-8"))["dependencies"]
    for path in (CLIENTS / "python").glob("*.txt"):
        alone = path.with_suffix(".no-deps")
        pinned = (alone if alone.exists() else path).read_text(encoding="utf-8").split()
        name, _, version = pinned[0].partition("==")
        tested[name] = version
    assert dict(named) == tested
