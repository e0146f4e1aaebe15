"""Tests that run the engine's benchmarks with the demo model in their smallest setting."""

from dataclasses import replace

import pytest

from benchmarks import prefill, tuning
from benchmarks.runs import (
    DEMO,
    GREEDY,
    UNLIMITED_GBPS,
    Run,
    abort_requests,
    drive,
    load_chat_prompts,
    make_request,
    ram_spec,
    session,
)
from engine.spec import DraftSpec, StreamSpec
from tests.engine.order.pretended_cuda import PretendedCuda, install

TARGET = DEMO / "target"
PLAIN = ram_spec(TARGET, DraftSpec("none"), gbps=UNLIMITED_GBPS, max_sequences=2)


def test_a_run_records_tokens_times_passes_and_bytes() -> None:
    prompt = load_chat_prompts("starters")[0]
    with session(PLAIN) as served:
        run = drive(served, [make_request("a", prompt, replace(GREEDY, max_tokens=4))])
        assert len(run.tokens_of("a")) == run.num_tokens == 4
        assert len(run.passes) == len(run.times_of("a")) == 4
        assert run.times_of("a") == sorted(run.times_of("a"))
        assert run.finished["a"].completion_tokens == 4
        assert run.answered == {"a"}
        # Every pass reads all streamed weights; the ring may be ahead by less than a pass.
        assert 3 * served.streamed_bytes < served.link_bytes <= 5 * served.streamed_bytes


def test_a_session_computes_on_the_stream_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafting ahead has a lower priority than a pass only if passes have a stream of their own."""
    cuda = PretendedCuda()
    install(monkeypatch, cuda)
    plain = replace(PLAIN, device="cuda:0", stream=StreamSpec(tier="ram"), numerics="fast")
    with cuda.recording(), session(plain) as served:
        assert cuda.current_stream() is cuda.compute
        drive(served, [make_request("a", [5, 6, 7], replace(GREEDY, max_tokens=2))])
    cuda.checker.check()


def test_aborted_requests_leave_an_idle_engine() -> None:
    with session(PLAIN) as served:
        requests = [make_request(name, [5, 6, 7], GREEDY) for name in ("a", "b")]
        assert len(drive(served, requests, passes=2).passes) == 2
        abort_requests(served, ["a", "b"])
        assert not served.engine.has_work()
        assert (
            drive(served, [make_request("a", [5], replace(GREEDY, max_tokens=1))]).num_tokens == 1
        )


@pytest.mark.slow
def test_tuning_compares_each_text_with_the_best_of_the_grid() -> None:
    kinds = tuning.make_texts(1, 3)
    figures = tuning.measure(TARGET, kinds, [(1, 1), (2, 2)], rounds=1, over_draft=1.0)
    assert len(figures.bars) == 3
    rows = figures.tables[0].rows
    assert {row[2] for row in rows} == {tuning.TUNED, "1 x 1", "2 x 2"}
    for kind in kinds:
        shares = [row[4] for row in rows if row[0] == kind.name and row[2] != tuning.TUNED]
        assert max(shares) == 1.0
    assert all(row[1] >= 0 for row in rows)


def test_prefill_counts_the_bytes_of_whole_passes() -> None:
    figures = prefill.measure(TARGET, [40, 80], balanced=80, rounds=1)
    for length, streamed, *_, passes in figures.tables[0].rows:
        assert (length, streamed) == (length, pytest.approx(passes))
    assert [row[0] for row in figures.tables[0].rows] == [40, 80]
    assert [row[0] for row in figures.tables[1].rows] == [80]
    turn = dict(zip(figures.tables[2].columns, figures.tables[2].rows[0], strict=True))
    assert turn["new"] < turn["computed"] + 1 <= turn["prompt"]


def test_gaps_are_measured_from_the_last_tokens_of_the_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefill, "USUAL_PASSES", 2)
    with session(PLAIN) as served:
        found = prefill.measure_gap(served, 150)
        assert not served.engine.has_work()
    assert found.longest_s > 0 and found.usual_s > 0
    assert found.admission_s >= found.longest_s
    assert found.passes >= 1


def test_the_rate_without_tokens_is_zero() -> None:
    assert Run(began=1.0, ended=3.0).tokens_per_second == 0.0
