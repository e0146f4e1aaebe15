"""The comparison of substitutes continues where an earlier run was interrupted."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.real import substitutes, tokens_per_pass
from benchmarks.real.substitutes import COLUMNS, FORMS, Form, Row


def row_of(form: Form) -> Row:
    return [str(form), 4.5, 96, *range(FORMS.index(form), FORMS.index(form) + 3)]


def run(
    monkeypatch: pytest.MonkeyPatch, arguments: Sequence[str], *, rows: int | None = None
) -> list[Form]:
    """Run the command, interrupted after some rows if given; return the forms it measured."""
    measured: list[Form] = []

    def measure(prompts: int, tokens: int, forms: Sequence[Form]) -> Iterator[Row]:
        for form in forms:
            if len(measured) == rows:
                raise KeyboardInterrupt
            measured.append(form)
            yield row_of(form)

    monkeypatch.setattr(substitutes, "measure", measure)
    substitutes.main(arguments)
    return measured


def test_a_run_measures_the_rows_that_an_interrupted_one_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--json", "--resume", str(tmp_path / "rows.json")]
    with pytest.raises(KeyboardInterrupt):
        run(monkeypatch, arguments, rows=2)
    assert capsys.readouterr().out == ""
    for missing in (FORMS[2:], ()):
        assert run(monkeypatch, arguments) == list(missing)
        output = capsys.readouterr()
        (table,) = json.loads(output.out)["tables"]
        assert table["columns"] == list(COLUMNS)
        assert table["rows"] == list(map(row_of, FORMS))
        assert len(output.err.splitlines()) == len(missing)


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, ["--tokens", "48"], "measured with prompts of each kind 1, tokens of an answer 96"),
        (None, ["--prompts", "2"], "measured with prompts of each kind 1, tokens of an answer 96"),
        ("{", [], "has no figures of this benchmark"),
        ("[]", [], "has no figures of this benchmark"),
        ("{}", [], "has no figures of this benchmark"),
    ],
)
def test_a_file_of_another_run_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    arguments: Sequence[str],
    message: str,
) -> None:
    path = tmp_path / "rows.json"
    if content is None:
        run(monkeypatch, ["--resume", str(path)])
    else:
        path.write_text(content, encoding="utf-8")
    before = path.read_bytes()
    with pytest.raises(SystemExit):
        run(monkeypatch, ["--resume", str(path), *arguments])
    assert message in capsys.readouterr().err
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("path", "message"),
    [("missing/rows.json", "missing is not a folder"), (".", "has no figures of this benchmark")],
)
def test_a_file_that_cannot_be_written_is_refused_at_once(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    path: str,
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, ["--resume", str(tmp_path / path)])
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("main", [substitutes.main, tokens_per_pass.main])
@pytest.mark.parametrize("number", ["4", "0"])
def test_prompts_that_there_are_not_are_refused(
    number: str,
    main: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark", "--prompts", number])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert f"--prompts: invalid choice: {number} (choose from 1, 2, 3)" in capsys.readouterr().err
