"""Methods are found by their file's name, and the facts in the file decide how they are used."""

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.drafting import methods
from engine.drafting.method import candidates, facts_of
from engine.drafting.methods import available
from engine.messages import NO_DRAFT
from engine.planning.preview import WhatIf, preview
from engine.spec import DraftSpec, StreamSpec
from server.cli import main
from server.config import files
from tests.engine.models import (
    PLAIN,
    SUBSPEC,
    add_tokenizer,
    alone,
    checkpoint,
    exact,
    load,
    model_spec,
    prompt,
    request,
    run,
)
from tests.engine.weights.formats.test_linear import mxfp4_checkpoint
from tests.examples import added, example_in, write_files

ROOT = Path(__file__).parents[3]
EXAMPLE = "repeat"
CARD = WhatIf(device_memory=1 << 30, link_gbps=0.001)

# A draft with weights of its own, which uses the target's KV cache.
HEADS = """
from engine.drafting.method import DraftNeeds, MethodFacts
from engine.drafting.tree import Bounds

FACTS = MethodFacts(
    bounds=Bounds(depth=3, width=1, branch=1, budget=4),
    agreement=0.5,
    has_draft_steps=True,
    is_candidate=True,
    needs=lambda context: DraftNeeds(scratch_rows=context.bounds.budget, weight_bytes=5 << 20),
)
"""


@contextmanager
def adding(folder: Path, name: str = EXAMPLE, text: str | None = None) -> Iterator[None]:
    """Add a method's file for the time of a block: `text`, or else the docstring's example."""
    text = example_in(methods.__doc__) if text is None else text
    write_files(folder, {f"engine/drafting/methods/{name}.py": text})
    with added(folder, methods):
        yield


def with_high_agreement() -> str:
    """Return the example with facts that say the target agrees nearly always."""
    return example_in(methods.__doc__).replace("agreement=0.1", "agreement=0.9")


def test_each_file_is_a_method() -> None:
    assert available() == ["ngram", "none", "prediction", "recycling", "specexec", "subspec"]


def test_extending_md_points_to_the_example() -> None:
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    assert "| a drafting method | `engine/drafting/methods/` | docstring of that package |" in text


def test_only_the_method_named_none_has_no_drafts() -> None:
    assert [name for name in available() if not facts_of(name).has_drafts] == [NO_DRAFT]


def test_the_facts_of_all_methods_are_read_without_torch() -> None:
    script = (
        "import sys, importlib, engine.drafting.methods as methods\n"
        "for name in methods.available():\n"
        "    importlib.import_module(f'engine.drafting.methods.{name}')\n"
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_example_serves_once_its_file_is_added(tmp_path: Path) -> None:
    asked = [request("g", prompt(8)), request("s", prompt(9), temperature=1.0, seed=1)]
    want = alone(load(checkpoint("llama"), PLAIN), asked)
    with adding(tmp_path):
        assert EXAMPLE in available()
        got = run(load(checkpoint("llama"), DraftSpec(EXAMPLE)), asked)
    assert exact(got) == exact(want)
    stats = got[("g", 0)].stats
    assert stats is not None and stats.drafted > 0


def test_the_example_joins_the_trees_of_a_draft_model(tmp_path: Path) -> None:
    with adding(tmp_path):
        engine = load(checkpoint("llama"), SUBSPEC)
    assert EXAMPLE in engine.info.draft_methods


def test_the_example_is_checked_and_planned_like_other_methods(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(files, "packaged_folder", lambda: tmp_path / "packaged")

    def plan(draft: str) -> tuple[int, str, str]:
        text = f"target: {{source: {checkpoint('llama')}}}\ndraft: {draft}\n"
        write_files(tmp_path, {"configs/models/mine.yaml": text})
        code = main.main(["plan", "mine", "--json", "--device-memory", "1GiB"])
        return code, *capsys.readouterr()

    with adding(tmp_path):
        code, out, _ = plan(f"{{method: {EXAMPLE}}}")
        refused, _, error = plan(f"{{method: {EXAMPLE}, source: a/b}}")
    found: dict[str, Any] = json.loads(out)
    assert (code, found["draft"], found["plan"]["draft_bytes"]) == (0, EXAMPLE, 0)
    assert found["forecast"]["tokens_per_pass"] == pytest.approx(1.1)
    assert found["forecast"]["draft_seconds"] == 0
    assert found["assumptions"][-1]["figure"] == f"1.1 by {EXAMPLE}"
    assert refused != 0 and "go with method specexec only" in error


def test_auto_considers_the_example(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mxfp4_checkpoint(tmp_path / "model")  # of which subspec has no copies
    add_tokenizer(tmp_path / "model")
    mixture = model_spec(tmp_path / "model", DraftSpec(), stream=StreamSpec(tier="ram"))
    with adding(tmp_path / "unchanged"), caplog.at_level(logging.DEBUG, "engine.planning.choice"):
        assert candidates() == ["ngram", EXAMPLE, "subspec"]
        assert preview(mixture, CARD).scheme.method == "ngram"
    assert any(message.startswith(f"draft {EXAMPLE}:") for message in caplog.messages)
    with adding(tmp_path / "high agreement", text=with_high_agreement()):
        assert preview(mixture, CARD).scheme.method == EXAMPLE
        served = load(tmp_path / "model", DraftSpec(), stream=StreamSpec(tier="ram", slots=2))
    assert EXAMPLE in served.info.draft_methods


def test_a_change_to_the_example_is_advised_if_it_helps_most(tmp_path: Path) -> None:
    spec = model_spec(checkpoint("mixtral"), PLAIN, stream=StreamSpec(tier="ram"))
    with adding(tmp_path, text=with_high_agreement()):
        gains = {gain.change: gain.factor for gain in preview(spec, CARD).gains}
    assert gains[f"draft.method: none -> {EXAMPLE}"] > gains["draft.method: none -> ngram"] > 1


def test_the_needs_of_a_new_draft_model_are_planned(tmp_path: Path) -> None:
    spec = model_spec(checkpoint("llama"), DraftSpec("heads", depth=2), stream=StreamSpec("ram"))
    with adding(tmp_path, "heads", HEADS):
        scheme = preview(spec, CARD).scheme
    assert scheme.plan.draft_bytes == 5 << 20
    assert (scheme.bounds.depth, scheme.bounds.budget) == (2, 4)
    assert scheme.demand.draft.scratch_rows == 4 and not scheme.demand.draft.substitute_bytes
    assert scheme.forecast.tokens_per_pass == pytest.approx(1.75)
    assert scheme.forecast.draft_step_seconds > 0
