"""A test that runs the benchmark of the lossless codes in its smallest setting."""

import pytest

from benchmarks import coding


@pytest.mark.slow
def test_every_form_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coding, "SHAPES", ((64, 128),))
    monkeypatch.setattr(coding, "TIMED", (32, 1024))
    figures = coding.measure(coding.DEMO, rounds=1)
    bits, speeds = figures.tables
    assert [row[0] for row in bits.rows] == [row[0] for row in speeds.rows] == list(coding.FORMS)
    assert all(0 < value < 16 for row in bits.rows for value in row[1::2])
    assert all(value > 0 for row in speeds.rows for value in row[1:3])
    has_c = coding.compile_c() is not None
    assert len(figures.bars) == 12 + 2 * has_c
