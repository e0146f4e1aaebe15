"""Tests of long tails: they are replayed in slices, so that no other request waits for them."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from engine.messages import AnswerFormat, Failed, Generate, Tail, Tokens
from engine.runtime import replay
from engine.runtime.engine import Engine
from engine.sequences.sequence import TokenSequence
from engine.spec import StreamSpec
from tests.engine.grammars import ids, json_checkpoint, schema_grammar
from tests.engine.models import PLAIN, checkpoint, drain, hooks, load, prompt, request, run

TOKENS = 400  # of a tail
SLICE = round(replay.SLICE_SECONDS * 1000)  # tokens, where each takes a millisecond

LISTS = {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}
CALLS = AnswerFormat("hermes", "think", {"f": {}}, "")
FORMED = ids("[" + "[1, 22], " * TOKENS)[:TOKENS]
CALL = ids('<think>ab</think><tool_call>{"name": "f", "arguments": {"a": "' + "abc" * TOKENS)
RULES: dict[str, tuple[list[int], dict[str, Any]]] = {
    "penalties": (ids("abc " * TOKENS)[:TOKENS], {"presence_penalty": 0.5, "logprobs": 1}),
    "stop strings": (CALL[:TOKENS], {"stop": ("zz",), "logprobs": 1}),
    "grammar": (FORMED, {"grammar": schema_grammar(LISTS), "repetition_penalty": 1.1}),
    "near the limit": (FORMED, {"grammar": schema_grammar(LISTS), "max_tokens": TOKENS + 9}),
}


@pytest.fixture(autouse=True)
def _slow_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a millisecond pass with each look at the clock, which follows each replayed token."""
    ticks = count()
    clock = SimpleNamespace(monotonic=lambda: next(ticks) / 1000)
    monkeypatch.setattr(replay, "time", clock)


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Return the number of tokens replayed so far, by request."""
    counted: Counter[str] = Counter()
    emit = TokenSequence.emit

    def count_replayed(self: TokenSequence, *args: Any, **named: Any) -> bool:
        counted[self.request_id] += named.get("source") == "continued"
        return emit(self, *args, **named)

    monkeypatch.setattr(TokenSequence, "emit", count_replayed)
    return counted


def long(name: str, tail: list[int], *, is_read: bool = True, **params: Any) -> Generate:
    """Return a request whose only choice has emitted a tail of `TOKENS` tokens."""
    params = {"max_tokens": TOKENS + 3, "ignore_eos": False, **params}
    answer_format = CALLS if "stop" in params else None
    message = request(name, ids("give"), seed=1, **params)
    return replace(
        message, answer_format=answer_format, emitted=(Tail(0, tuple(tail), is_read=is_read),)
    )


def slices(engine: Engine, replayed: Counter[str]) -> Iterator[dict[str, int]]:
    """Run steps until no tail is left, and yield how many tokens each replayed, by request."""
    while engine._requests.has_own_work:
        before = replayed.copy()
        assert not any(isinstance(event, Failed) for event in engine.step())
        yield dict(replayed - before)


@pytest.mark.parametrize("is_read", [True, False])
@pytest.mark.parametrize("rules", RULES)
def test_a_tail_is_replayed_in_slices(rules: str, is_read: bool, replayed: Counter[str]) -> None:
    tail, params = RULES[rules]
    engine = load(json_checkpoint(), PLAIN)
    engine.add(long("r", tail, is_read=is_read, **params))
    assert not replayed, "none while requests are taken from the pipe"
    found = list(slices(engine, replayed))
    assert replayed["r"] == TOKENS
    assert max(own.get("r", 0) for own in found) <= SLICE
    assert len(found) >= TOKENS // SLICE
    answers = drain(engine)
    assert answers["r", 0].finish


def test_a_running_stream_gets_its_tokens_meanwhile() -> None:
    engine = load(checkpoint("llama"), PLAIN, stream=StreamSpec(tier="resident"))
    engine.add(request("running", prompt(5), max_tokens=40))
    engine.step()
    engine.add(long("long", prompt(TOKENS)))
    steps = 0
    while engine._requests.has_own_work:
        assert [event.request_id for event in engine.step()] == ["running"]
        steps += 1
    assert steps == 1 + TOKENS // SLICE
    assert drain(engine)["long", 0].finish == "length"


def test_a_pass_that_waits_for_weights_replays_meanwhile(replayed: Counter[str]) -> None:
    engine = load(checkpoint("llama"), PLAIN)
    stream: Any = engine._loaded.stream
    own = stream.unit
    in_waits: list[int] = []

    def unit(index: int, on_wait: Any = None) -> Any:
        before = replayed["long"]
        assert on_wait(0.02) or before == TOKENS
        in_waits.append(replayed["long"] - before)
        assert not on_wait(0.0), "there is no time"
        return own(index)

    engine.add(request("running", prompt(5), max_tokens=40))
    engine.step()
    engine.add(long("long", prompt(TOKENS)))
    stream.unit = unit
    engine.step()
    assert 20 <= in_waits[0] <= max(in_waits) <= 21
    assert SLICE + sum(in_waits) == replayed["long"] > 2 * SLICE
    drain(engine)


def test_requests_take_turns_and_a_short_tail_does_not_wait_for_a_long_one(
    replayed: Counter[str],
) -> None:
    engine = load(checkpoint("llama"), PLAIN)
    engine.add(long("long", prompt(TOKENS)))
    engine.add(long("short", prompt(9), max_tokens=10))
    engine.step()
    assert replayed == {"long": SLICE}
    [event] = engine.step()
    assert isinstance(event, Tokens) and (event.request_id, event.finish) == ("short", "length")
    assert set(drain(engine)) == {("long", 0)}


def test_a_client_may_leave_while_its_tail_is_replayed(replayed: Counter[str]) -> None:
    engine = load(checkpoint("llama"), PLAIN)
    engine.add(long("r", prompt(TOKENS)))
    engine.step()
    engine.abort("r")
    assert not drain(engine) and replayed == {"r": SLICE}
    assert run(engine, [request("r", prompt(5))])["r", 0].finish, "its id is free"


def test_each_slice_is_reported_as_progress() -> None:
    engine = load(checkpoint("llama"), PLAIN)
    engine.add(long("r", prompt(TOKENS)))
    before = hooks(engine).calls
    engine.step()
    assert hooks(engine).calls == before + 1
    drain(engine)
