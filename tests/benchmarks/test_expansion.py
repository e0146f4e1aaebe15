"""A test that runs the benchmark of expansion in its smallest setting."""

import pytest

from benchmarks import expansion
from engine.weights.gguf_file import TYPES


@pytest.mark.slow
def test_every_form_is_expanded_in_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expansion, "ROWS", 32)
    figures = expansion.measure(rounds=1)
    rows = {row[0]: row[1:] for row in figures.tables[0].rows}
    blocks = {type_.name for type_ in TYPES.values() if not type_.is_plain}
    assert blocks < rows.keys()
    assert all(value > 0 for name in blocks for value in rows[name])
    assert all(row[0] > 0 and row[1] > 0 for row in rows.values())
    assert len(figures.bars) == len(rows)
