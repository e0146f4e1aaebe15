"""A load makes nothing that the cache has, and plans anew where the cache has it no more."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from engine.planning import blueprint, choice, link_probe
from engine.planning.preview import WhatIf, preview
from engine.runtime.engine import Engine
from engine.spec import StreamSpec
from engine.streaming.packed import PackedUnits
from engine.streaming.packed_cache import CacheEntry, entries, find_digest
from tests.engine.models import SUBSPEC, checkpoint, exact, load, model_spec, prompt, request, run

ASKED = [request("greedy", prompt(20, 1), max_tokens=6)]
DRAFT = replace(SUBSPEC, calibrate=False)  # the text of the small models has no start
STREAM = StreamSpec(tier="disk", slots=2)
AGAIN = "planned and loaded anew"


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use an empty cache, and code weights although the model is small."""
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(link_probe, "LEAST_CODED_BYTES", 0)
    monkeypatch.setattr(choice, "LEAST_GAIN", 0.0)


def served() -> Engine:
    return load(checkpoint("llama", torch.bfloat16), DRAFT, stream=STREAM)


def to_be_made() -> str:
    """Return what the plan says that a start would have to make."""
    spec = model_spec(checkpoint("llama", torch.bfloat16), DRAFT, stream=STREAM)
    found = {one.what: one.figure for one in preview(spec, WhatIf()).assumptions}
    return found["to be made"]


def entry_of(kind: str) -> CacheEntry:
    (found,) = (own for own in entries() if kind in PackedUnits(own.path).key)
    return found


def damage(kind: str) -> None:
    """Change a byte in each unit of an entry, which keeps its size.

    Files are replaced: engines that were loaded before go on with theirs.
    """
    for path in entry_of(kind).path.glob("*.unit"):
        content = bytearray(path.read_bytes())
        content[0] ^= 1
        other = path.with_suffix(".damaged")
        other.write_bytes(content)
        other.replace(path)


@pytest.mark.slow
def test_what_the_cache_has_is_not_planned_to_be_made(caplog: pytest.LogCaptureFixture) -> None:
    assert to_be_made() == "4-bit copies and coded weights"
    want = exact(run(served(), ASKED))
    assert to_be_made() == "nothing"
    damage("coded")  # which only a read can notice
    with caplog.at_level(logging.WARNING):
        assert exact(run(served(), ASKED)) == want
    assert caplog.text.count(AGAIN) == 1
    (entry_of("coded").path / "00000.unit").unlink()
    assert to_be_made() == "coded weights"
    caplog.clear()
    assert exact(run(served(), ASKED)) == want
    assert AGAIN not in caplog.text


def test_entries_that_vanish_after_the_plan_are_made_by_another_plan(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blueprint, "find_digest", lambda *_: "there")
    with caplog.at_level(logging.WARNING):
        assert len(run(served(), ASKED)) == 1
    assert caplog.text.count(AGAIN) == 1
    assert len(entries()) == 2, "copies and coded weights"


def test_an_entry_is_complete_if_its_index_and_the_sizes_are_right() -> None:
    served()
    own = entry_of("substitutes")
    model, identity = PackedUnits(own.path).key.rsplit("\n", 1)[0].split("\n", 1)
    assert find_digest(model, identity) == PackedUnits(own.path).digest
    assert find_digest(model, identity + "x") is None
    assert find_digest("other", identity) is None
    unit = own.path / "00000.unit"
    content = unit.read_bytes()
    unit.write_bytes(content[:-1])
    assert find_digest(model, identity) is None
    unit.write_bytes(content)
    assert find_digest(model, identity) is not None
    (own.path / "index.json").write_text("{")
    assert find_digest(model, identity) is None
