"""Methods are found by their file's name, and the README's example is one."""

import re
from pathlib import Path

import pytest

import engine.drafting.methods
from engine.drafting.method import available
from engine.spec import DraftSpec
from tests.engine.models import PLAIN, alone, checkpoint, exact, load, prompt, request, run

README = Path(__file__).parents[3] / "README.md"
IMPORTS = """
from engine.drafting.method import DraftContext, LookupMethod
from engine.drafting.growth import Bounds
from engine.drafting.tree import DraftTree
"""


def test_the_methods_are_the_files() -> None:
    assert available() == ["ngram", "none", "prediction", "recycling", "specexec", "subspec"]


def test_the_readmes_method_works_by_adding_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "def prepare" in block]
    (tmp_path / "repeat.py").write_text(IMPORTS + example)
    monkeypatch.setattr(
        engine.drafting.methods, "__path__", [*engine.drafting.methods.__path__, str(tmp_path)]
    )
    assert "repeat" in available()
    asked = [request("g", prompt(8)), request("s", prompt(9), temperature=1.0, seed=1)]
    want = alone(load(checkpoint("llama"), PLAIN), asked)
    got = run(load(checkpoint("llama"), DraftSpec("repeat")), asked)
    assert exact(got) == exact(want)
    stats = got[("g", 0)].stats
    assert stats is not None and stats.drafted > 0
