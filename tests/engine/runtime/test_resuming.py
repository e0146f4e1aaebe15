"""Tests of answers that another engine goes on with: joined, they are those of an unbroken run."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from engine.messages import AnswerFormat, Audited, Failed, Generate, Tail, Tokens
from engine.runtime.engine import Engine
from engine.spec import DraftSpec
from tests.engine.grammars import ids, json_checkpoint, lark, schema_grammar
from tests.engine.models import (
    PLAIN,
    SUBSPEC,
    Answer,
    checkpoint,
    drain,
    hooks,
    load,
    prompt,
    request,
    run,
)
from tests.engine.runtime import test_constrained, test_exactness, test_thinking
from tests.variations import variations

Sent = dict[int, list[Tokens]]  # the messages of each choice

CHAT = AnswerFormat("hermes", "think", {}, "<think>")
STOPS: dict[str, dict[str, Any]] = {
    "stop": {"stop": ("ab", "e1"), "seed": 3},
    "half a stop string": {"stop": ("never begun \x00", "aaaaaaaaaaaaaaaaaa"), "seed": 5},
    "stop after min_tokens": {"stop": ("a",), "min_tokens": 9, "seed": 4},
}


def stops() -> list[Generate]:
    """Return requests with stop strings, as text and as chats that a parser reads."""
    text = ids('give {"name": "abc"} <think>ab</think>')
    plain = [request(name, text, temperature=1.5, **params) for name, params in STOPS.items()]
    chats = [
        replace(own, request_id=f"{own.request_id}, chat", answer_format=CHAT) for own in plain
    ]
    return [*plain, *chats]


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name != "k"],
        "additionalProperties": False,
    }


OWN = {"$ref": "#/$defs/own"}
NEST = {**OWN, "$defs": {"own": _object(k=OWN, v={"type": "string", "minLength": 2})}}
# Schemas with seeds and token limits. If the search for closing tokens began anew, at least a
# quarter of the cut answers would end in other tokens.
TIGHT: list[tuple[dict[str, Any], int, int]] = [
    (_object(a={"type": "string", "minLength": 12}), 0, 27),
    (_object(a={"type": "string", "pattern": "^([a-e]{2})+x?[0-9]{6,}$"}), 0, 20),
    ({"type": "array", "items": {"type": "string", "minLength": 3}, "minItems": 4}, 1, 34),
    ({"type": "array", "items": {"type": "number"}, "minItems": 6}, 1, 27),
    (NEST, 0, 20),
    (NEST, 1, 14),
]


def near_the_limit() -> list[Generate]:
    """Return requests with grammars whose token limit decides some of the tokens."""
    return [
        request(
            f"{number}",
            ids("give me"),
            grammar=schema_grammar(schema),
            ignore_eos=False,
            temperature=1.5,
            seed=seed,
            max_tokens=most,
            logprobs=0,
        )
        for number, (schema, seed, most) in enumerate(TIGHT)
    ]


def several() -> list[Generate]:
    """Return requests of three choices, of which some end early."""
    text = prompt(70, 2)
    stop: dict[str, Any] = {"stop_token_ids": tuple(range(3, 12)), "logprobs": 1}
    formed = {"ignore_eos": False, "grammar": schema_grammar(test_constrained.PERSON)}
    kinds = [*({"seed": seed, **stop} for seed in range(3)), {"seed": 4, **formed}]
    return [
        request(str(number), text, n=3, temperature=1.0, **params)
        for number, params in enumerate(kinds)
    ]


def predicted() -> list[Generate]:
    texts = prompt(20, 3)
    made = [request("predicted", texts, max_tokens=20), request("hot", texts, temperature=1.0)]
    return [replace(own, prediction=tuple(prompt(9, 4) * 2)) for own in made]


def crossing() -> list[Generate]:
    """Return requests whose answers cross the original length of a longrope, 32 tokens."""
    made = [
        request(f"{length}", prompt(length, length), temperature=1.0, seed=length, logprobs=0)
        for length in (12, 20, 31)
    ]
    return [*made, request("n", prompt(25, 5), n=2, temperature=1.0, seed=5)]


KINDS = {
    "sampling": ("llama", test_exactness.requests),
    "stops": ("json", stops),
    "grammars": ("json", lambda: test_constrained.asked()[::3]),
    "near the limit": ("json", near_the_limit),
    "thinking": ("json", lambda: test_thinking.asked()[::3]),
    "several": ("json", several),
    "predicted": ("llama", predicted),
    "longrope": ("phi3_longrope", crossing),
    "hybrid": ("qwen3_5_text", lambda: test_exactness.requests()[::4]),
}
QUICK = ("sampling", "grammars", "predicted", "hybrid")
# Each engine that goes on has a draft, as if the first had not: no draft changes an answer.
DRAFTS = {
    "json": DraftSpec("ngram"),
    "llama": SUBSPEC,
    "phi3_longrope": SUBSPEC,
    "qwen3_5_text": SUBSPEC,
}


def folder(family: str) -> Any:
    return json_checkpoint() if family == "json" else checkpoint(family)


def record(engine: Engine, message: Generate) -> Sent:
    """Serve a request and return the messages of each of its choices."""
    sent: Sent = {}
    engine.add(message)
    while engine.has_work():
        for event in engine.step():
            assert not isinstance(event, Failed), event
            sent.setdefault(event.choice, []).append(event)
    return sent


def joined(messages: Sequence[Tokens]) -> Answer:
    answer = Answer()
    for message in messages:
        answer.take(message)
    return answer


def cut(message: Generate, sent: Sent, place: int, name: str) -> Generate:
    """Return the request that goes on after the first `place` messages of each choice."""
    tails = [
        Tail(choice, tuple(joined(own[:place]).ids), own[:place][-1].stats)
        for choice, own in sent.items()
        if own[:place][-1].finish is None
    ]
    return replace(message, request_id=name, emitted=tuple(tails))


def places(sent: Sent) -> list[int]:
    """Return after how many messages to cut: more places near the end than before."""
    longest = max(map(len, sent.values()))
    found = {1, *range(5, longest, 9), *(longest - back for back in (1, 2, 5))}
    return sorted(place for place in found if 0 < place < longest)


def figures(answer: Answer) -> tuple[object, ...]:
    stats = answer.stats
    assert stats is not None
    return stats.prompt_tokens, stats.completion_tokens, stats.cached_tokens


def as_tokens(answer: Answer) -> Tokens:
    """Return an answer as one message."""
    return Tokens(
        "",
        0,
        tuple(answer.ids),
        answer.text,
        tuple(answer.logprobs),
        tuple(answer.prompt_logprobs),
        tuple(answer.origins),
        answer.finish,
        stats=answer.stats,
    )


@pytest.mark.parametrize("kind", variations(KINDS, quick=QUICK))
def test_an_answer_goes_on_in_another_engine(kind: str) -> None:
    family, make = KINDS[kind]
    first = load(folder(family), PLAIN)
    messages = make()
    all_sent = [record(first, message) for message in messages]
    first.close()
    other = load(folder(family), DRAFTS[family], max_sequences=16)
    for message, sent in zip(messages, all_sent, strict=True):
        cuts = [cut(message, sent, place, str(place)) for place in places(sent)]
        rest = run(other, cuts)
        for own in cuts:
            place = int(own.request_id)
            for choice, whole in sent.items():
                want, got = joined(whole), joined(whole[:place])
                if got.finish is None:
                    more = rest.pop((own.request_id, choice))
                    assert more.ids, "a finished choice is not sent again"
                    got.take(as_tokens(more))
                assert got.exact == want.exact, (message.request_id, place, choice)
                assert figures(got) == figures(want), (message.request_id, place, choice)
        assert not rest
    assert other._cache.num_free_pages == other._cache.num_pages


def test_figures_and_pass_numbers_add_up() -> None:
    engine = load(checkpoint("llama"), PLAIN)
    message = request("r", prompt(70), max_tokens=12)
    sent = record(engine, message)
    want = joined(sent[0])
    for place in (1, 5, 11):
        got, rest = joined(sent[0][:place]), run(engine, [cut(message, sent, place, "r")])
        got.take(as_tokens(rest[("r", 0)]))
        assert got.origins == want.origins
        assert want.stats is not None and got.stats is not None
        before = sent[0][place - 1].stats
        assert got.stats.passes == want.stats.passes == 12
        assert before is not None and got.stats.prompt_ms == before.prompt_ms
        assert got.stats.predicted_ms > before.predicted_ms


def test_resumed_choices_share_the_pages_of_their_prompt() -> None:
    first = load(checkpoint("llama"), PLAIN)
    message = request("r", prompt(300), n=3, temperature=1.0, seed=5, max_tokens=9)
    resumed = cut(message, record(first, message), 4, "r")
    other = load(checkpoint("llama"), PLAIN)
    reported: list[int] = []
    hooks(other).on_prompt = lambda _, done: reported.append(done)
    other.add(resumed)
    rows, last = 0, other.last_pass
    while other.has_work():
        other.step()  # on a busy machine some steps only read the tokens that are given
        if other.last_pass is not None and other.last_pass is not last:
            last = other.last_pass
            rows += last.prompt_rows
    assert 300 <= rows <= 300 + 3 * 64, "only the tails and a part of a page run for each choice"
    assert reported[0] == 0


def test_choices_may_go_on_of_which_some_have_no_token_yet() -> None:
    engine = load(checkpoint("llama"), PLAIN)
    message = request("r", prompt(70), n=3, temperature=1.0, seed=6, prompt_logprobs=1)
    whole = {choice: joined(own) for choice, own in record(engine, message).items()}
    tails = (Tail(0, ()), Tail(1, tuple(whole[1].ids[:5])), Tail(2, ()))
    rest = run(engine, [replace(message, emitted=tails)])
    assert [rest[("r", choice)].ids for choice in range(3)] == [
        whole[0].ids,
        whole[1].ids[5:],
        whole[2].ids,
    ]
    assert rest[("r", 0)].prompt_logprobs == whole[0].prompt_logprobs


def test_the_audit_of_a_resumed_answer_finds_no_mismatch() -> None:
    engine = load(json_checkpoint(), SUBSPEC, audit=1.0)
    message = near_the_limit()[0]
    sent = record(engine, message)
    run(engine, [cut(message, sent, 9, "again")])
    whole = len(joined(sent[0]).ids)
    audits = [engine.auditor.run() for _ in range(2)]
    assert audits == [Audited(whole, 0)] * 2


def test_an_answer_goes_on_under_fast_numerics() -> None:
    first = load(checkpoint("llama"), SUBSPEC, numerics="fast")
    message = request("r", prompt(70), n=2, temperature=1.0, seed=3, max_tokens=20)
    resumed = cut(message, record(first, message), 2, "r")
    first.close()
    rest = run(load(checkpoint("llama"), SUBSPEC, numerics="fast"), [resumed])
    for tail in resumed.emitted:
        answer = rest[("r", tail.choice)]
        assert (len(tail.ids) + len(answer.ids), answer.finish) == (20, "length")


def test_a_new_request_runs_after_a_resumed_one() -> None:
    engine = load(checkpoint("llama"), PLAIN, max_sequences=1)
    message = request("old", prompt(20))
    resumed = cut(message, record(engine, message), 3, "old")
    engine.add(request("new", prompt(5), max_tokens=2))
    engine.add(resumed)
    assert [event.request_id for event in engine.step()] == ["old"]
    drain(engine)


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (ids("ab"), "token 1 of 1 does not match the grammar"),
        (ids("green"), "Choice 0 .* token 5 of 5 ends the answer"),
    ],
)
def test_a_tail_that_cannot_go_on_is_refused(tail: list[int], reason: str) -> None:
    engine = load(json_checkpoint(), PLAIN)
    message = request("r", ids("ab"), grammar=lark('start: "red" | "green"'), max_tokens=9)
    tails = (Tail(0, tuple(tail)),)
    engine.add(replace(message, emitted=tails))
    [failed] = engine.step()
    assert isinstance(failed, Failed) and re.search(reason, failed.message), failed
    assert not engine.has_work()
    assert run(engine, [message])[("r", 0)].finish
