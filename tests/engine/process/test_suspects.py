"""The rules about requests whose process has died: which run alone, and which are refused."""

import pytest

from engine.messages import Generate, SamplingParams, Tail
from engine.process.suspects import (
    DeathHistory,
    Held,
    Quarantine,
    fingerprint_of,
    suspects_of,
)


@pytest.mark.parametrize(
    ("was_alone", "is_refused"),
    [
        ([True], False),
        ([True, True], True),
        ([False, True], True),
        ([True, False], False),
        ([False, False, False], False),
        ([False, False, True], True),
    ],
)
def test_a_request_that_was_alone_at_its_second_death_is_refused(
    was_alone: list[bool], is_refused: bool
) -> None:
    history = DeathHistory()
    for now, alone in enumerate(was_alone):
        history.record("request", now, was_alone=alone)
    assert history.is_refused("request", now=10.0) == is_refused
    assert history.count("request") == len(was_alone)
    assert not history.is_refused("another", now=10.0)


@pytest.mark.parametrize(
    ("deaths", "is_refused"),
    [
        ([(True, False), (True, True), (True, True), (True, True)], False),
        ([(True, False), (True, True), (True, False)], True),
        ([(False, False), (True, True), (False, False), (True, True)], False),
        ([(True, True)] * 5, True),
        ([(True, True)] * 4 + [(False, True)], False),
    ],
)
def test_a_request_that_gets_further_after_each_death_is_refused_at_the_fifth(
    deaths: list[tuple[bool, bool]], is_refused: bool
) -> None:
    history = DeathHistory()
    for now, (alone, progressed) in enumerate(deaths):
        history.record("request", now, was_alone=alone, has_progressed=progressed)
    assert history.is_refused("request", now=10.0) == is_refused


def test_a_request_is_not_refused_for_deaths_before_its_first_pass_until_there_are_many() -> None:
    history = DeathHistory()
    for now in range(4):
        history.record("waits", now, was_alone=True, has_run=False)
        assert not history.is_refused("waits", now)
    history.record("waits", 4, was_alone=True, has_run=False)
    assert history.is_refused("waits", now=5.0)


def test_the_deaths_of_an_answered_request_are_forgotten() -> None:
    history = DeathHistory()
    history.record("bystander", now=0.0, was_alone=True)
    history.forget("bystander")
    assert not history
    history.record("bystander", now=1.0, was_alone=True)
    assert not history.is_refused("bystander", now=2.0)


def test_a_refused_request_is_accepted_again_after_ten_minutes() -> None:
    history = DeathHistory()
    for now in (0.0, 10.0):
        history.record("poison", now, was_alone=True)
    assert history.is_refused("poison", now=609.0)
    assert not history.is_refused("poison", now=610.0)
    history.record("poison", now=611.0, was_alone=True)
    assert history.is_refused("poison", now=612.0)


def test_the_history_has_a_limit() -> None:
    history = DeathHistory()
    for now in (0.0, 1.0):
        history.record("first", now, was_alone=True)
    for other in range(1024):
        history.record(other, now=2.0, was_alone=True)
    assert not history.is_refused("first", now=3.0)


@pytest.mark.parametrize(
    ("held", "suspects"),
    [
        ([], []),
        ([("a", True, 1), ("b", True, 1)], ["a", "b"]),
        ([("a", True, 1), ("waits", False, 1)], ["a"]),
        ([("a", False, 1), ("b", False, 1)], ["a", "b"]),
        ([("a", True, 1), ("waits", False, 2)], ["a", "waits"]),
    ],
)
def test_the_requests_of_a_pass_run_alone(
    held: list[tuple[str, bool, int]], suspects: list[str]
) -> None:
    assert suspects_of([Held(*own) for own in held]) == suspects


def test_requests_run_alone_one_by_one() -> None:
    quarantine = Quarantine()
    quarantine.begin(["a", "b", "c"])
    quarantine.start_next(3)
    assert (quarantine.current, quarantine.next) == ("a", "b")
    assert not quarantine.note_tokens("other", 9)
    assert not quarantine.note_tokens("a", 2)
    assert quarantine.note_tokens("a", 1)
    quarantine.remove("b")  # its client has left
    quarantine.start_next(1)
    quarantine.remove("c")
    assert (quarantine.current, quarantine.next) == (None, None)


def test_after_a_death_of_one_alone_the_others_still_run_alone() -> None:
    quarantine = Quarantine()
    quarantine.begin(["a", "b", "c"])
    quarantine.start_next(1)
    quarantine.begin(["a"])
    assert (quarantine.current, quarantine.next) == (None, "a")
    quarantine.remove("a")
    assert quarantine.next == "b"


def test_a_request_is_recognised_by_what_the_client_asked() -> None:
    message = Generate("first", (1, 2), SamplingParams(seed=1))
    same = Generate("again", (1, 2), SamplingParams(seed=2), emitted=(Tail(0, (7,)),))
    others = [
        Generate("first", (1, 3), SamplingParams(seed=1)),
        Generate("first", (1, 2), SamplingParams(seed=1, top_k=3)),
        Generate("first", (1, 2), SamplingParams(seed=1), n=2),
    ]
    assert fingerprint_of(message) == fingerprint_of(same)
    assert fingerprint_of(message) not in map(fingerprint_of, others)
