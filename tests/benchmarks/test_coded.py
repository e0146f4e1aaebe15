"""Tests of the arithmetic of the benchmark of coded weights, and of packing a small model."""

from dataclasses import replace
from math import isnan
from pathlib import Path

import pytest

from benchmarks.coded import CASES, Place
from benchmarks.coded_packing import FORMS, Packing, measure_packing
from benchmarks.coded_report import Case, Pair, Trial, make_figures, make_trial
from benchmarks.offload_report import Trial as ProcessTrial
from benchmarks.peers.engines import Files
from benchmarks.peers.job import Answer, Mark, Outcome
from benchmarks.random_model import Checkpoint, Shape, make_checkpoint

PLAIN = Trial(
    tokens_per_second=1.0,
    tokens_per_pass=8.0,
    draft_s=2.0,
    ahead_s=1.0,
    pass_s=6.0,
    compute_s=1.0,
    link_gb=3.0,
    bits=16.0,
    streamed_gb=3.0,
    decode_s=0.0,
)
CODED = replace(PLAIN, tokens_per_second=1.6, link_gb=1.5, bits=8.0, decode_s=1.5)
CASE = Case("subspec", 0.5, has_share=True)
PACKING = Packing("int4", 7.2, 0.45, 0.46, copying_s=4.0, plain_s=2.0, coded_s=5.0)
CHECKPOINT = Checkpoint(Path("model"), 1_500_000_000, 3_000_000_000)


@pytest.mark.parametrize(
    ("gbps", "allowed"),
    [
        (0.5, 8 / 5),  # the link limits both
        (1.0, 5 / 4.5),  # decoding and computing limit the coded weights
        (3.0, 1.0),  # plain weights are faster
    ],
)
def test_what_is_allowed_follows_from_link_draft_compute_and_decoding(
    gbps: float, allowed: float
) -> None:
    assert Pair(CASE, gbps, PLAIN, CODED).allowed(CODED) == pytest.approx(allowed)


def test_coded_weights_may_be_given_their_own_time_of_drafting() -> None:
    coded = replace(CODED, draft_s=3.0, ahead_s=0.0)
    assert Pair(CASE, 0.5, PLAIN, coded).allowed(coded, own_drafting=True) == pytest.approx(8 / 6)


def test_nothing_is_known_without_link_or_coded_weights() -> None:
    assert isnan(Pair(CASE, None, PLAIN, CODED).allowed(CODED))
    assert isnan(Pair(CASE, 0.5, PLAIN, PLAIN).allowed(PLAIN))


def test_plain_weights_are_compared_with_those_that_were_coded_in_another_setting() -> None:
    pairs = [
        Pair(CASE, 0.5, PLAIN, CODED),
        Pair(replace(CASE, gbps=1.0), 1.0, PLAIN, PLAIN),
    ]
    figures = make_figures(CHECKPOINT, [PACKING], pairs)
    shares = [row[6] for row in figures.tables[1].rows]
    assert shares == [pytest.approx(1.0), pytest.approx(0.9)]
    reached = {bar.quantity: bar.is_reached for bar in figures.bars}
    assert reached == {
        "bits a weight, int4": True,
        "coded units over plain ones, int4": True,
        "time to pack, int4": False,
        "subspec, 0.5 GB/s: auto over plain, tokens/s": True,
        "subspec, 0.5 GB/s: share of what is allowed": True,
        "subspec, 1 GB/s: auto over plain, tokens/s": True,
        "subspec, 1 GB/s: share of what is allowed": False,
    }
    assert PACKING.ratio_with_copies == 1.5


def test_the_figures_of_a_process_are_means_over_its_passes() -> None:
    sums = {"draft_ms": 4e3, "pass_ms": 6e3, "ahead_ms": 1e3, "copy_stall_ms": 2e3}
    answer = Answer(
        "a",
        (),
        0.0,
        (Mark(0.0, 1, 0), Mark(5.0, 9, 0), Mark(10.0, 17, 0)),
        {**sums, "link_bytes": 6e9},
    )
    own = {"link_bits": 7.2, "streamed_bytes": 3e9, "decode_s": 0.8}
    trial = make_trial(ProcessTrial("auto", Outcome(1.0, (answer,), own), 0))
    assert (trial.tokens_per_second, trial.tokens_per_pass) == (1.6, 8.0)
    assert (trial.draft_s, trial.pass_s, trial.compute_s, trial.link_gb) == (2.0, 3.0, 1.5, 3.0)
    assert trial.ahead_s == 0.5


@pytest.mark.parametrize("limit", [None, 1 << 30])
def test_every_case_has_its_limits(limit: int | None, tmp_path: Path) -> None:
    place = Place(Files(tmp_path), limit)
    for case in CASES:
        setting, stream = place.setting(case), place.start(case, "auto").job.options["stream"]
        is_simulated = limit is None and case.gbps is not None
        assert ("simulate_gbps" in stream) is is_simulated
        assert (setting.read_gbps is not None) is (case.gbps is not None and not is_simulated)
        assert (stream.get("tier") == "resident") is (case.gbps is None)


@pytest.mark.slow
def test_units_are_packed_by_each_kind_of_copy(tmp_path: Path) -> None:
    shape = Shape(layers=1, hidden=128, intermediate=256, heads=2, kv_heads=1, vocabulary=4096)
    checkpoint = make_checkpoint(tmp_path / "model", shape)
    found = measure_packing(checkpoint, tmp_path / "packing", rounds=1)
    assert [packing.form for packing in found] == [name for name, *_ in FORMS]
    assert all(4 < packing.bits < 16 for packing in found)
    assert [packing.copying_s > 0 for packing in found] == [True, True, True, False]
    assert all(packing.of_units < packing.of_model < 1 for packing in found)
