"""Tests of answers whose first tokens the client gives: they are replayed, and then go on."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.messages import CONTINUED, Failed, Generate, Tail, ThinkingBudget, Tokens
from engine.runtime.engine import Engine
from tests.engine.grammars import ids, json_checkpoint, lark
from tests.engine.models import PLAIN, SUBSPEC, checkpoint, drain, load, prompt, request, run
from tests.engine.runtime.test_resuming import (
    DRAFTS,
    KINDS,
    QUICK,
    Sent,
    figures,
    folder,
    joined,
    places,
    record,
)
from tests.variations import variations


def given(message: Generate, name: str, tails: Sequence[Tail]) -> Generate:
    """Return the request of a client that has these tokens."""
    return replace(message, request_id=name, emitted=tuple(tails), is_continued=True)


def cut(message: Generate, sent: Sent, place: int) -> Generate:
    """Return the request of a client that has the first `place` messages of each choice."""
    tails = [
        Tail(choice, tuple(joined(sent[choice][:place]).ids), is_read=False)
        for choice in range(message.n)
    ]
    return given(message, str(place), tails)


def served(engine: Engine, messages: Sequence[Generate]) -> dict[tuple[str, int], list[Tokens]]:
    """Serve requests together, and return the messages of each choice."""
    got: dict[tuple[str, int], list[Tokens]] = {}
    for message in messages:
        engine.add(message)
    while engine.has_work():
        for event in engine.step():
            assert not isinstance(event, Failed), event
            got.setdefault((event.request_id, event.choice), []).append(event)
    return got


@pytest.mark.parametrize("kind", variations(KINDS, quick=QUICK))
def test_a_replay_and_the_rest_are_the_whole_answer(kind: str) -> None:
    family, make = KINDS[kind]
    first = load(folder(family), PLAIN)
    messages = make()[::2]
    all_sent = [record(first, message) for message in messages]
    first.close()
    other = load(folder(family), DRAFTS[family], max_sequences=16)
    for message, sent in zip(messages, all_sent, strict=True):
        longest = max(map(len, sent.values()))
        rest = served(other, [cut(message, sent, place) for place in [*places(sent), longest]])
        for (name, choice), (replayed, *others) in rest.items():
            place, case = int(name), (message.request_id, name, choice)
            want, shown = joined(sent[choice]), joined(sent[choice][:place])
            assert replayed.is_replayed and not any(own.is_replayed for own in others)
            assert (list(replayed.ids), replayed.text) == (shown.ids, shown.text), case
            assert {origin.source for origin in replayed.origins} == {CONTINUED}
            is_complete = place >= len(sent[choice])
            # After the border, the tokens before it are scored with the long frequencies too.
            if not is_complete and kind != "longrope":
                assert list(replayed.logprobs) == shown.logprobs, case
            got = joined([replayed, *others])
            if is_complete or kind == "longrope" or message.params.prompt_logprobs is not None:
                got.logprobs, got.prompt_logprobs = want.logprobs, want.prompt_logprobs
            assert got.exact == want.exact, case
            assert figures(got)[:2] == figures(want)[:2], case
            assert got.stats is not None and got.stats.cached_tokens <= got.stats.prompt_tokens
    assert other._cache.num_free_pages == other._cache.num_pages


def test_choices_that_are_complete_end_at_once_and_the_others_go_on() -> None:
    engine = load(checkpoint("llama"), PLAIN, audit=1.0)
    message = request("r", prompt(70), n=3, temperature=1.0, seed=6, max_tokens=9)
    whole = {choice: joined(own).ids for choice, own in record(engine, message).items()}
    engine.auditor._waiting.clear()
    tails = [Tail(choice, tuple(whole[choice][:num]), is_read=False) for choice, num in
             ((0, 9), (1, 4), (2, 0))]  # fmt: skip
    engine.add(given(message, "again", tails))
    [ended] = engine.step()[:1]
    assert isinstance(ended, Tokens)
    assert (ended.choice, list(ended.ids), ended.finish) == (0, whole[0], "length")
    answers = drain(engine)
    # the first step has also emitted a token of choice 1
    assert whole[1][-len(answers["again", 1].ids) :] == answers["again", 1].ids
    assert answers["again", 2].ids == whole[2]
    assert not engine.auditor.has_pending, "a client may give any tokens"
    engine.add(given(message, "done", [replace(tails[0], choice=0)]))
    assert engine.has_work()
    [ended] = engine.step()
    assert isinstance(ended, Tokens) and ended.finish == "length" and not engine.has_work()


def test_a_continued_request_waits_for_its_turn() -> None:
    engine = load(checkpoint("llama"), PLAIN, max_sequences=1)
    message = request("r", prompt(20))
    tail = Tail(0, tuple(run(engine, [message])["r", 0].ids[:3]), is_read=False)
    engine.add(request("before", prompt(5), max_tokens=2))
    engine.add(given(message, "continued", [tail]))
    assert [event.request_id for event in engine.step()] == ["before"]
    drain(engine)


def test_its_tokens_are_found_in_the_prefix_cache() -> None:
    engine = load(checkpoint("llama"), SUBSPEC)
    message = request("r", prompt(70), max_tokens=80)
    whole = run(engine, [message])["r", 0].ids
    rest = served(engine, [given(message, "again", [Tail(0, tuple(whole[:75]), is_read=False)])])
    stats = rest["again", 0][-1].stats
    assert stats is not None and stats.passes <= 5
    assert (stats.prompt_tokens, stats.cached_tokens, stats.completion_tokens) == (70, 70, 80), (
        "of the prompt"
    )


@pytest.mark.parametrize(
    ("params", "text", "reason"),
    [
        ({"grammar": lark('start: "red" | "green"')}, "rab", "token 2 of 3 does not match"),
        (
            {"grammar": lark('start: "red" | "green"')},
            "redd",
            r"3 of 4 ends the answer \(stop",
        ),
        ({"max_tokens": 3}, "abcd", r"3 of 4 ends the answer \(length"),
        ({"stop": ("bc",)}, "abcd", r"3 of 4 ends the answer \(stop"),
        ({"stop_token_ids": tuple(ids("b"))}, "abc", r"2 of 3 ends the answer \(stop"),
        (
            {"thinking": ThinkingBudget(2, "", "</think>", (tuple(ids("</think>")),))},
            "abcd",
            "token 3 of 4 is .* but the thinking budget forces",
        ),
    ],
)
def test_tokens_that_the_answer_cannot_have_are_refused(
    params: dict[str, Any], text: str, reason: str
) -> None:
    engine = load(json_checkpoint(), PLAIN)
    message = request("r", ids("ab"), **params)
    tail = Tail(0, tuple(token for letter in text for token in ids(letter)), is_read=False)
    engine.add(given(message, "r", [tail]))
    [failed] = engine.step()
    assert isinstance(failed, Failed) and re.search(reason, failed.message), failed
    assert (failed.code, failed.param) == ("invalid_value", "continue_tokens")
    assert not engine.has_work()
