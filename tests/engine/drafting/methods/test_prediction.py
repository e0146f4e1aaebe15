"""Predicted outputs: how the pointer follows an answer, is lost and is found again."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, strategies as st

from engine.drafting.methods.prediction import LOST, Prediction
from engine.spec import DraftSpec
from tests.engine.lookups import answering, check, leaves, passes, paths, writing
from tests.engine.models import (
    PLAIN,
    SUBSPEC,
    VOCAB,
    alone,
    checkpoint,
    load,
    prompt,
    request,
    run,
)
from tests.engine.sequence_makers import EOS, LIMITS

PROMPT = (2, 3)
EXPECTED = tuple(range(100, 200))  # no token occurs twice


def text_like(length: int, seed: int = 0) -> list[int]:
    """Return random tokens, of which few are common and many rare, like words."""
    draw = random.Random(seed)
    return [2 + min(int(draw.paretovariate(0.7)), 5000) for _ in range(length)]


def after(
    emitted: Sequence[int], prediction: Sequence[int] = EXPECTED, depth: int = 4
) -> list[Sequence[int]]:
    """Return the continuations proposed after these emitted tokens, the best first."""
    sequence = answering(PROMPT, emitted, prediction)
    return list(leaves(Prediction().propose(sequence, depth, 64)))


def test_nothing_is_proposed_without_a_prediction_or_after_its_end() -> None:
    assert after([100], ()) == []
    assert after([100, 101], (100, 101)) == []


def test_an_answer_that_follows_gets_the_next_tokens() -> None:
    assert after([100])[0] == (101, 102, 103, 104)
    assert after([100, 101, 102])[0] == (103, 104, 105, 106)


def test_the_prompt_is_not_part_of_the_answer() -> None:
    sequence = answering((100, 101, 102), (100,), EXPECTED)
    assert leaves(Prediction().propose(sequence, 2, 64))[0] == (101, 102)


def test_a_long_chain_gets_most_of_the_rows() -> None:
    tree = Prediction().propose(answering(PROMPT, (100,), EXPECTED), 48, 64)
    assert tree is not None and max(tree.depths) == 48
    assert len(leaves(tree)) > 1  # alternatives that leave one token out get the other rows


def test_a_left_out_token_is_among_the_alternatives() -> None:
    assert (102, 103, 104, 105) in after([100])
    assert (101, 103, 104, 105) in after([100])


@pytest.mark.parametrize(
    ("emitted", "next_"),
    [
        ([100, 101, 7], 103),  # replaced
        ([100, 101, 7], 102),  # inserted
        ([100, 101, 103], 104),  # left out
        ([100, 101, 7, 8], 104),  # two replaced
        ([100, 101, 7, 8], 103),  # one replaced by two
        ([100, 101, 7], 104),  # two replaced by one
        ([7], 101),  # from the first token on
    ],
)
def test_after_a_departure_every_way_back_is_proposed(emitted: list[int], next_: int) -> None:
    assert next_ in [path[0] for path in after(emitted)]


def test_a_match_of_two_tokens_sets_the_pointer_again() -> None:
    assert after([100, 101, 7, 110, 111])[0] == (112, 113, 114, 115)
    assert after([100, 101, 7, 8, 9, 102, 103])[0] == (104, 105, 106, 107)


def test_the_nearest_of_equal_matches_counts() -> None:
    prediction = [5, 6, 10, 11, *range(100, 130), 5, 6, 20, 21, *range(200, 230), 5, 6, 30, 31]
    emitted = [*prediction[:30], 7, 5, 6]
    assert after(emitted, prediction, depth=2)[0] == (20, 21)


def test_only_a_match_of_three_tokens_moves_the_pointer_far() -> None:
    prediction = tuple(range(100, 400))
    firsts = [path[0] for path in after([100, 101, 7, 390, 391], prediction)]
    assert firsts[0] == 392 and 105 in firsts
    assert after([100, 101, 7, 390, 391, 8], prediction)[0][0] == 106
    assert after([100, 101, 7, 390, 391, 392, 8], prediction)[0][0] == 394
    back = [*range(300, 310), *range(100, 103)]
    assert after(back, prediction)[0] == (103, 104, 105, 106)


def test_a_long_lost_pointer_proposes_nothing_until_a_match() -> None:
    emitted = [100, *range(1000, 1000 + LOST)]
    assert after(emitted) != []
    emitted.append(999)
    assert after(emitted) == []
    assert after([*emitted, 120, 121])[0] == (122, 123, 124, 125)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("new", [[], [9001], [9001, 9002], [9001, 9002, 9003, 9004]])
@pytest.mark.parametrize("at", [0, 1, 250, 498])
def test_one_changed_word_takes_under_a_tenth_of_the_passes(
    seed: int, new: list[int], at: int
) -> None:
    before = text_like(500, seed)
    text = [*before[:at], *new, *before[at + 2 :]]
    sequence = answering(PROMPT, text[:1], before)
    assert passes(Prediction(), sequence, text[1:]) < len(text) / 10
    assert sequence.tokens == [*PROMPT, *text]


def test_many_changes_still_take_far_fewer_passes() -> None:
    before = text_like(500)
    draw = random.Random(1)
    text = list(before)
    for place in sorted(draw.sample(range(2, 498), 20), reverse=True):
        text[place : place + draw.randrange(3)] = [9000 + place] * draw.randrange(3)
    taken = passes(Prediction(), answering(PROMPT, text[:1], before), text[1:])
    assert taken < len(text) / 6


def test_an_unrelated_prediction_gets_worse_scores() -> None:
    lookup = Prediction()
    first = paths(lookup.propose(answering(PROMPT, (100, 7), EXPECTED), 4, 64))
    for seed in range(4):
        text = text_like(50, seed)
        passes(lookup, answering(PROMPT, text[:1], text_like(50, seed + 10)), text[1:])
    later = paths(lookup.propose(answering(PROMPT, (100, 7), EXPECTED), 4, 64))
    assert later[(102,)] < first[(102,)]


def test_choices_of_one_request_are_followed_separately() -> None:
    lookup = Prediction()
    one, two = answering(PROMPT, (100,), EXPECTED), answering(PROMPT, (100, 101), EXPECTED)
    assert leaves(lookup.propose(one, 2, 64))[0] == (101, 102)
    assert leaves(lookup.propose(two, 2, 64))[0] == (102, 103)
    one.tokens += [101, 102]
    assert leaves(lookup.propose(one, 2, 64))[0] == (103, 104)


def test_a_released_sequence_is_forgotten_and_may_come_back() -> None:
    lookup, sequence = Prediction(), answering(PROMPT, (100, 7, 8), EXPECTED)
    before = lookup.propose(sequence, 8, 64)
    assert len(lookup._pointers) == len(lookup._search._proposed) == 1
    lookup.release(sequence)
    lookup.release(sequence)
    assert not lookup._pointers and not lookup._search._proposed
    assert lookup.propose(sequence, 8, 64) == before


def test_nothing_is_proposed_after_an_end_token_or_the_last_position() -> None:
    prediction = (100, 101, EOS, 102, 103)
    tree = Prediction().propose(answering(PROMPT, (100,), prediction), 8, 64)
    assert (101, EOS) in paths(tree) and not any(EOS in path[:-1] for path in paths(tree))
    short = answering(PROMPT, (100,), EXPECTED, max_tokens=4)
    tree = Prediction().propose(short, 48, 64)
    assert tree is not None and max(tree.depths) == 2
    near = replace(LIMITS, original_length=6)
    tree = Prediction().propose(answering(PROMPT, (100,), EXPECTED, limits=near), 48, 64)
    assert tree is not None and max(tree.depths) == 3


tokens = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@given(
    prediction=tokens, text=tokens, depth=st.integers(0, 8), rows=st.integers(1, 20), prompt=tokens
)
def test_any_answer_is_emitted_against_any_prediction(
    prediction: list[int], text: list[int], depth: int, rows: int, prompt: list[int]
) -> None:
    lookups = Prediction(), Prediction()
    sequences = [answering(prompt, text[:1], prediction) for _ in lookups]
    counts = [
        list(writing(lookup, sequence, text[1:], depth=depth, rows=rows))
        for lookup, sequence in zip(lookups, sequences, strict=True)
    ]
    assert counts[0] == counts[1]
    assert sequences[0].tokens == sequences[1].tokens == prompt + text


@pytest.mark.parametrize("length", [1, 3, 20_000])
def test_a_prediction_of_one_token_repeated_is_followed(length: int) -> None:
    sequence = answering(PROMPT, (6, 7), (6,) * length)
    lookup = Prediction()
    for token in (6, 6, 6, 7, 6, 6):
        check(lookup.propose(sequence, 48, 64), sequence, 48, 64, "prediction")
        sequence.tokens.append(token)


def test_api_18_one_changed_word_in_500_takes_under_a_tenth_of_the_passes() -> None:
    """The answer is sampled, so that only the prediction can propose its next tokens."""
    asked = request("r", prompt(8), max_tokens=500, ignore_eos=True, temperature=1.0, seed=1)
    want = alone(load(checkpoint("llama"), PLAIN), [asked])[("r", 0)]
    expected = [*want.ids[:249], (want.ids[249] + 1) % VOCAB, *want.ids[250:]]
    engine = load(checkpoint("llama"), DraftSpec("prediction"))
    got = run(engine, [replace(asked, prediction=tuple(expected))])[("r", 0)]
    assert got.exact == want.exact
    assert got.stats is not None and want.stats is not None
    assert got.stats.passes < want.stats.passes / 10
    followed = sum(origin.source == "prediction" for origin in got.origins)
    assert got.stats.prediction_accepted == followed > 450
    checked = got.stats.prediction_accepted + got.stats.prediction_rejected
    assert checked == got.stats.drafted, "no other draft proposes rows"
    assert want.stats.prediction_accepted == want.stats.prediction_rejected == 0


def test_api_18_rows_that_others_drafted_too_count_as_predicted() -> None:
    """The prompt contains the text, so the n-gram look-up finds it as well."""
    asked = request("r", prompt(8), max_tokens=60, ignore_eos=True, temperature=1.0, seed=1)
    plain = load(checkpoint("llama"), PLAIN)
    first = alone(plain, [asked])[("r", 0)].ids
    again = replace(asked, prompt=(*asked.prompt, *first, *asked.prompt))
    want = alone(plain, [again])[("r", 0)]
    engine = load(checkpoint("llama"), SUBSPEC)
    got = run(engine, [replace(again, prediction=tuple(want.ids))])[("r", 0)]
    assert got.exact == want.exact
    assert got.stats is not None
    assert got.stats.prediction_accepted >= got.stats.accepted > 30
