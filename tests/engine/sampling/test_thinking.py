"""Tests of the rule that closes a thinking part when its budget is used up."""

import random
from dataclasses import replace

import pytest

from engine.messages import ThinkingBudget
from engine.sampling.thinking import MAX_DELAY, ThinkingRule, ThinkingState, forced_tokens

PIECES = [
    *("a", "b", " ", "\n", "\n\n", "<t>", "</t>", "</", "t>", "<", ">", "."),
    *("<m>an<x>", "<m>fin<x>", "<e>", "<s>", "a</t>b", "<t>\n", "<t>a</t>"),
]
CODED = [piece.encode() for piece in PIECES] + [b"\xe2", b"\x82", b"\xac", b""]
CUT, MORE, LAST, SPECIAL = range(len(PIECES), len(CODED))


def ids(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


def budget(
    tokens: int,
    *closings: list[int],
    begin: str = "",
    end: str = "</t>",
    repeats: bool = False,
) -> ThinkingBudget:
    made = tuple(map(tuple, closings or [ids("\n", "</t>", "\n\n")]))
    return ThinkingBudget(tokens, begin, end, made, repeats)


def start(made: ThinkingBudget) -> ThinkingState:
    return ThinkingRule(made, CODED.__getitem__).start()


def forced_after(made: ThinkingBudget, tokens: list[int]) -> list[int]:
    state = start(made)
    for token in tokens:
        state = state.after(token)
    return [*state.closing]


CLOSE = ["\n", "</t>", "\n\n"]
SPELLED = ids("\n", "</", "t>", "\n\n")


@pytest.mark.parametrize(
    ("tokens", "before", "forced"),
    [
        (0, [], CLOSE),
        (1, [], []),
        (1, ["a"], CLOSE),
        (2, ["a"], []),
        (2, ["a", "b"], CLOSE),
        (2, ["a", "b", "\n"], ["</t>", "\n\n"]),
        (2, ["a", "b", "\n", "</t>"], ["\n\n"]),
        (2, ["a", "b", "\n", "</t>", "\n\n"], []),  # closed
        (2, ["a", "b", "\n", "</t>", "\n\n", "a", "a", "a"], []),  # never again
        (3, ["a", "</t>", "b", "b"], []),  # ended by itself
        (2, ["a", "</t>"], []),  # at the border
        (2, ["a", "a</t>b"], []),
        (2, ["a", "\n"], ["</t>", "\n\n"]),  # the model has begun to close
        (2, ["a", "\n\n"], ["</t>", "\n\n"]),
        (1, ["\n"], []),  # a line end after the opening mark does not count
        (1, ["\n", "a"], CLOSE),
        (1, ["\n", " "], CLOSE),
        (0, ["\n"], ["</t>", "\n\n"]),
        (2, ["a", "b", "a"], CLOSE),  # something else had priority: it is tried again
        (2, ["a", "b", "\n", "a"], CLOSE),
        (2, ["a", "b", "\n", "</", "t>"], []),  # other tokens spelled the end
    ],
)
def test_the_thought_is_closed_after_its_budget(
    tokens: int, before: list[str], forced: list[str]
) -> None:
    assert forced_after(budget(tokens), ids(*before)) == ids(*forced)


@pytest.mark.parametrize(
    ("before", "forced"),
    [
        (["a", "b"], ["\n", "</", "t>", "\n\n"]),
        (["a", "</"], ["t>", "\n\n"]),
        (["\n", "a", "</"], ["t>", "\n\n"]),
        (["a", "<"], ["\n", "</", "t>", "\n\n"]),  # no token of the closing ones ends here
    ],
)
def test_a_mark_of_several_tokens_is_completed(before: list[str], forced: list[str]) -> None:
    assert forced_after(budget(2, SPELLED), ids(*before)) == ids(*forced)


@pytest.mark.parametrize(
    ("before", "forced"),
    [
        ([], []),
        (["\n", " ", "<t>"], []),
        (["<t>", "a"], CLOSE),
        (["<t>\n", "a"], CLOSE),  # a token that begins the thought does not count
        (["<", "t>", "a"], CLOSE),
        (["<t>a</t>", "a", "a"], []),
        (["a", "<t>", "a", "a"], []),  # a thought can only come first
        (["<", "a", "t>", "a", "a"], []),
    ],
)
def test_a_thought_that_the_answer_begins(before: list[str], forced: list[str]) -> None:
    assert forced_after(budget(1, begin="<t>"), ids(*before)) == ids(*forced)


FIRST, AGAIN = ["<e>", "<s>"], ["<e>", "<s>", "<m>fin<x>"]


@pytest.mark.parametrize(
    ("before", "forced"),
    [
        (["<m>an<x>", "a"], []),
        (["<m>an<x>", "a", "b"], FIRST),
        (["a", "b", "<m>an<x>", "a", "<e>", "<s>", "b", "<m>an<x>", "a"], FIRST),
        (["<m>an<x>", "a", "b", *FIRST, "a", "<m>an<x>"], AGAIN),
        (["<m>an<x>", "a", "b", *FIRST, "<m>an<x>", *AGAIN, "<m>an<x>"], AGAIN),
        (["<m>an<x>", "a", "b", *FIRST, "<m>fin<x>", "a", "b"], []),
    ],
)
def test_thoughts_that_repeat_share_the_budget(before: list[str], forced: list[str]) -> None:
    made = budget(2, ids(*FIRST), ids(*AGAIN), begin="<m>an<x>", end="<e>", repeats=True)
    assert forced_after(made, ids(*before)) == ids(*forced)
    if before[0] == "<m>an<x>":  # the prompt may end with the opening mark
        assert forced_after(replace(made, is_begun=True), ids(*before[1:])) == ids(*forced)


def test_a_thought_without_an_opening_mark_does_not_repeat() -> None:
    made = budget(1, ids("<e>"), end="<e>", repeats=True)
    assert forced_after(made, ids("a")) == ids("<e>")
    assert forced_after(made, ids("a", "<e>", "a", "a")) == []


@pytest.mark.parametrize(
    ("before", "is_due"),
    [
        ([CUT], False),
        ([CUT, MORE], False),
        ([CUT, MORE, LAST], True),
        ([CUT, MORE, CUT], False),
        ([CUT] * (MAX_DELAY + 1), True),
        ([LAST], True),  # not the start of a character
        ([SPECIAL], True),
    ],
)
def test_a_character_is_completed_first(before: list[int], is_due: bool) -> None:
    assert bool(forced_after(budget(1), before)) == is_due


def test_a_path_is_followed_without_changing_the_state() -> None:
    made = budget(3)
    state = start(made).after(PIECES.index("a"))
    assert forced_tokens(state, None) == ()
    assert forced_tokens(state, None, ids("a")) == ()
    assert forced_tokens(state, None, ids("a", "b")) == tuple(ids(*CLOSE))
    assert forced_tokens(state, None, ids("a", "b", "\n")) == tuple(ids("</t>", "\n\n"))
    assert forced_tokens(state, None, ids("a", "</t>", "\n")) == ()
    assert forced_tokens(None, None, ids("a")) == ()


def test_no_thought_is_longer_than_its_budget() -> None:
    chance = random.Random(5)
    for _ in range(300):
        limit, begin = chance.randrange(6), chance.choice(["", "<t>"])
        made = budget(limit, begin=begin)
        state, written = start(made), begin.encode() if not begin else b""
        num_thought = 0
        for _ in range(40):
            was_inside = state.phase.value == "inside" and not state.closing
            token = state.closing[0] if state.closing else chance.randrange(len(CODED))
            num_thought += was_inside
            written += CODED[token]
            state = state.after(token)
        opened = written.lstrip().startswith(b"<t>") or not begin
        assert num_thought <= limit + MAX_DELAY + 1
        assert not opened or b"</t>" in written, (limit, written)
