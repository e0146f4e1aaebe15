"""The record of a piece survives its file, and its counts are printed."""

import json
from collections import Counter

import pytest

from tests.chaos.piece import Record
from tests.chaos.report import show


@pytest.mark.parametrize(("failures", "code"), [([], 0), (["seed 7, act 1: altered"], 1)])
def test_a_record_is_shown_as_it_was_written(
    failures: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(7, 10.0, "disk", verdicts=Counter(same=5, altered=len(failures)))
    record.failures = failures
    record.struck = {"read_flip": 3}
    record.growths = [("engine", 500, 2_500_000.0), ("tmp", 500, 0.0)]
    line = json.loads(json.dumps(record.line()))
    assert show([line, line]) == code
    said = capsys.readouterr().out
    assert "same 10" in said and "read_flip 6" in said
    assert "engine grew by 2.5 MB in 500 requests" in said and "tmp grew" not in said
    assert all(f"FAILED {failure}" in said for failure in failures)
    assert f"{2 * len(failures)} altered texts" in said
