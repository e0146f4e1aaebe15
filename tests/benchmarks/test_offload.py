"""Tests of the offload benchmark's arithmetic and of the files for other engines."""

from pathlib import Path

import pytest
import torch

from benchmarks.offload_report import Row, Trial, compute_medians, make_bars, set_best_link
from benchmarks.peers.gguf_file import gguf_name, make_once, pair_rows
from benchmarks.peers.job import Answer, Job, Mark, Outcome, Prompt, Recorder


def row(name: str, tokens_per_second: float, **figures: float) -> Row:
    values = {
        "tokens_per_pass": 1.0,
        "streamed_gb": 2.0,
        "disk_gbps": 1.0,
        "draft_ms": 0.0,
        "pass_ms": 2000.0,
        "compute_ms": 500.0,
        "read_gb": 2.0,
        "peak_gb": 1.0,
        "same_tokens": 1.0,
    }
    return Row(name=name, tokens_per_second=tokens_per_second, **{**values, **figures})


def test_efficiency_is_relative_to_the_limit_of_link_draft_and_compute() -> None:
    bound_by_link = row("a", 4.0, tokens_per_pass=10.0, draft_ms=500.0)
    assert bound_by_link.efficiency == pytest.approx(4.0 / (10 / 2.5))
    bound_by_compute = row("b", 1.0, tokens_per_pass=8.0, compute_ms=4000.0)
    assert bound_by_compute.efficiency == pytest.approx(1.0 / (8 / 4))


def test_the_bandwidth_is_at_least_what_an_engine_got() -> None:
    slow_probe = row("a", 1.0, disk_gbps=0.5, read_gb=2.0, pass_ms=2000.0)
    assert set_best_link([slow_probe, row("b", 1.0, disk_gbps=0.5, read_gb=1.0)])[1].disk_gbps == 1


def test_a_median_is_over_the_rounds_that_have_the_engine() -> None:
    rounds = [[row("a", 1.0), row("b", 5.0)], [row("a", 9.0)], [row("a", 2.0)]]
    result = compute_medians(rounds)
    assert result["a"].tokens_per_second == 2.0
    assert result["b"].tokens_per_second == 5.0


def test_only_measured_engines_have_bars() -> None:
    rows = {
        "replay A=8": row("replay A=8", 4.0),
        "llama.cpp bf16": row("llama.cpp bf16", 0.5),
        "none": row("none", 2.0),
    }
    bars = make_bars(rows)
    assert [(bar.value, bar.is_reached) for bar in bars] == [(8.0, True), (2.0, False)]


def test_an_answer_counts_neither_tokens_nor_time_of_its_first_pass() -> None:
    marks = (Mark(1.0, 1, 10), Mark(3.0, 5, 30), Mark(4.0, 8, 60))
    answer = Answer("prompt 0", tuple(range(8)), 0.0, marks)
    assert (answer.passes, answer.num_tokens, answer.seconds) == (2, 7, 3.0)
    assert answer.disk_bytes == 50


def test_a_recorder_ends_at_the_limit_and_at_an_end_token() -> None:
    recorder = Recorder(Prompt("a", (1,), max_tokens=5), ends=(9,))
    assert not recorder.emit([4, 5])
    assert recorder.emit([6, 9, 7])
    assert recorder.answer().tokens == (4, 5, 6, 9)
    recorder = Recorder(Prompt("b", (1,), max_tokens=2), ends=())
    assert recorder.emit([4, 5, 6])
    assert recorder.answer().tokens == (4, 5)


def test_jobs_and_outcomes_are_read_as_they_were_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job("model", (Prompt("a", (1, 2), 3),), (0, 2), {"threads": 2})
    job.write(tmp_path / "job.json")
    assert Job.read(tmp_path / "job.json") == job
    recorder = Recorder(job.prompts[0], job.ends)
    recorder.emit([2])
    outcome = Outcome(1.5, (recorder.answer(draft_ms=2.0),), {"version": "1"})
    print("a line of a library")
    outcome.print()
    assert Outcome.parse(capsys.readouterr().out) == outcome
    with pytest.raises(ValueError, match="printed nothing"):
        Outcome.parse("")
    assert Trial("a", outcome, 0).outcome.answers[0].figures == {"draft_ms": 2.0}


def test_tensors_get_their_names_in_llama_cpp() -> None:
    assert gguf_name("model.embed_tokens.weight") == "token_embd.weight"
    assert gguf_name("model.layers.12.mlp.up_proj.weight") == "blk.12.ffn_up.weight"
    assert gguf_name("lm_head.weight") == "output.weight"


def test_the_rows_of_rotary_pairs_become_neighbours() -> None:
    """transformers pairs row i with row i + half, llama.cpp row 2 i with row 2 i + 1."""
    heads, half = 2, 4
    weight = torch.arange(heads * 2 * half).float()[:, None]
    rows = pair_rows(weight, heads)[:, 0].tolist()
    assert rows[:8] == [0, 4, 1, 5, 2, 6, 3, 7]
    assert rows[8:] == [8 + row for row in rows[:8]]


def test_a_file_that_was_not_finished_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"

    def fail(part: Path) -> None:
        part.write_text("half")
        raise OSError("no space")

    def whole(part: Path) -> None:
        part.write_text("whole")

    with pytest.raises(OSError):
        make_once(path, fail)
    assert not path.exists()
    make_once(path, whole)
    make_once(path, fail)
    assert path.read_text() == "whole"
