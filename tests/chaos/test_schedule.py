"""The schedule is a pure function of the seed, and keeps what it promises."""

from itertools import pairwise

from tests.chaos.faults import DISK_FAULTS
from tests.chaos.schedule import FRONT_END_SHARE, KINDS, LANES, make_acts
from tests.chaos.shim import FAULTS

SEEDS = range(40)
MODELS = ("a", "b")
SECONDS = 400.0
ACTS = [act for seed in SEEDS for act in make_acts(seed, SECONDS, MODELS)]


def test_a_seed_gives_the_same_acts_and_another_one_others() -> None:
    acts = [make_acts(seed, SECONDS, MODELS) for seed in SEEDS]
    assert acts == [make_acts(seed, SECONDS, MODELS) for seed in SEEDS]
    assert len({repr(own) for own in acts}) == len(acts)


def test_steps_of_one_lane_do_not_overlap_and_end_with_their_act() -> None:
    for act in ACTS:
        assert [step.number for step in act.steps] == list(range(len(act.steps)))
        assert [step.at for step in act.steps] == sorted(step.at for step in act.steps)
        for lane in LANES:
            own = [step for step in act.steps if KINDS[step.kind].lane == lane]
            assert all(a.at + a.seconds < b.at for a, b in pairwise(own))
            assert all(step.at >= 0.0 and step.at + step.seconds <= act.seconds for step in own)


def test_processes_live_on_in_calm_acts_and_the_front_end_in_the_end_of_each() -> None:
    for act in ACTS:
        kinds = [(step.at, KINDS[step.kind]) for step in act.steps]
        ends = [at for at, kind in kinds if kind.ends_front_end]
        assert all(at < FRONT_END_SHARE * act.seconds for at in ends)
        if act.is_calm:
            assert not any(kind.ends_engine or kind.ends_front_end for _, kind in kinds)


def test_all_kinds_happen() -> None:
    assert {step.kind for act in ACTS for step in act.steps} == set(KINDS)
    assert {act.model for act in ACTS} == set(MODELS)


def test_faults_of_the_disk_are_those_of_the_library() -> None:
    kinds = {kind for kind in KINDS if kind.startswith("disk: ")}
    assert set(DISK_FAULTS) == kinds
    assert {fault for faults, _ in DISK_FAULTS.values() for fault in faults} == set(FAULTS)
