"""Tests of the hostile clients: what they send, measure and compare."""

import json
import os
import subprocess
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from itertools import islice
from mmap import mmap
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest

from benchmarks.hostile_clients import connection, witnesses
from benchmarks.hostile_clients.health_probe import Delays
from benchmarks.hostile_clients.hostile_requests import MAKERS
from benchmarks.hostile_clients.hostile_swarm import Sent, hostile_swarm
from benchmarks.hostile_clients.process_memory import Memory, PeakMemory, ServerMemory
from benchmarks.hostile_clients.questions import (
    CHAT,
    MESSAGES,
    RESPONSES,
    TEXT,
    BrokenAnswer,
    Question,
    extract_comparable,
    list_questions,
)
from benchmarks.hostile_clients.sender import Answers, Ending, attack
from benchmarks.hostile_clients.served_demo import Address, ServedDemo
from benchmarks.hostile_clients.shapes import Endless, Posted, Shape
from benchmarks.hostile_clients.witness_clients import Lost, Witnessed, ask, ask_and_compare


@pytest.fixture(scope="module")
def served() -> Iterator[Address]:
    """Run the front end with the fake engine in its own process; return its address."""
    command = [sys.executable, "-m", "tests.server.serve_fake"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = Address(process.pid, int(process.stdout.readline()))
        while not is_listening(address):
            assert process.poll() is None
        yield address
        process.kill()


def is_listening(address: Address) -> bool:
    try:
        return bool(address.get("/health"))
    except OSError:
        time.sleep(0.01)
        return False


def demo_of(address: Address) -> ServedDemo:
    """Return the parts of a `ServedDemo` that the measurements use."""
    known = SimpleNamespace(
        address=address, memory=ServerMemory(address.pid), num_starts=1, kill=lambda: None
    )
    known.ensure_running = lambda: address
    return cast(ServedDemo, known)


@pytest.mark.parametrize("shape", connection.SHAPES, ids=lambda shape: shape.name)
def test_every_shape_sends_a_body_of_the_declared_length(shape: Shape) -> None:
    first, *rest = islice(shape.pieces(1e-4), 50)
    if isinstance(shape, Posted):
        assert f"Content-Length: {sum(map(len, rest))}\r\n".encode() in first
        assert shape.nbytes(1e-4) == sum(map(len, rest))
    else:
        assert rest and all(rest) and shape.nbytes(1e-4) == 0


def test_names_of_shapes_are_unique_and_full_bodies_fit_the_limit() -> None:
    assert len({shape.name for shape in connection.SHAPES}) == len(connection.SHAPES)
    whole = Posted("", CHAT, b"[", b'"%d",' + b" " * 5000, b"0]")
    assert 30_000_000 < whole.nbytes(1.0) <= 32 * 2**20


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_random_requests_depend_only_on_their_seed(maker: Callable[[Random], Any]) -> None:
    made = [maker(Random(seed)) for seed in range(40)]
    assert made == [maker(Random(seed)) for seed in range(40)]
    assert all(path.startswith("/") for path, _ in made)


@pytest.mark.parametrize(
    ("answer", "status", "is_whole"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{", 200, False),
        (b"HTTP/1.1 413 No\r\ncontent-length: 2\r\n\r\n{}", 413, True),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n", 200, False),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n0\r\n\r\n", 200, True),
        (b"HTTP/1.1 400 Bad", None, False),
    ],
)
@pytest.mark.parametrize("cut", [1, 7, 1000])
def test_a_whole_answer_is_recognised_however_it_is_cut(
    answer: bytes, status: int | None, is_whole: bool, cut: int
) -> None:
    answers = Answers()
    for begin in range(0, len(answer), cut):
        answers.feed(answer[begin : begin + cut])
    assert (answers.status, answers.is_first_whole, answers.num_heads) == (status, is_whole, 1)


@pytest.mark.parametrize(
    ("shape", "ended"),
    [
        (Posted("", CHAT, b"{", b" ", b"}", 100_000), "400"),
        (Endless("", b"", b"A"), "400, "),
        (Endless("", b"GET /health HTTP/1.1\r\n\r\n", b" ", pause=9, is_read=False), "no answer"),
    ],
)
def test_the_ending_of_a_connection_is_reported(served: Address, shape: Shape, ended: str) -> None:
    assert str(attack(served.port, shape, seconds=0.3)).startswith(ended)


def test_a_stopped_attack_closes_its_connection(served: Address) -> None:
    shape = Endless("", b"", b"\r\n")
    assert attack(served.port, shape, 60.0, is_stopped=lambda: True).how == "stopped"


def test_the_peak_is_sampled_and_its_limit_calls_stop() -> None:
    stopped = threading.Event()
    before = ServerMemory(os.getpid()).read().front_end
    with PeakMemory(ServerMemory(os.getpid()), before + 40_000_000, stopped.set) as memory:
        assert not memory.is_over_limit
        held = mmap(-1, 80_000_000)  # unlike heap memory, never resident already
        held.write(bytes(len(held)))
        assert stopped.wait(10)
    assert memory.peak.front_end - memory.before.front_end > 0.5 * len(held)


def test_the_cost_of_one_connection_is_measured(
    served: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "REST_SECONDS", 0.1)
    monkeypatch.setattr(connection, "LEAST_REST_SECONDS", 0.0)
    shape = Posted("digits", CHAT, b"", b"1", b"", 1_000_000)
    cost = connection.measure_cost(demo_of(served), shape, seconds=0.1, scale=1.0)
    assert (cost.ending.status, cost.ending.how, cost.body_mb) == (400, "answered", 1.0)
    assert cost.delays.seconds and not cost.delays.failures and cost.kept_mb is not None


@pytest.mark.parametrize(
    ("beside", "kept", "delay", "failures", "missed"),
    [
        (200.0, 50.0, 0.2, 0, []),
        (201.0, 0.0, 0.0, 0, ["memory"]),
        (0.0, 51.0, 0.0, 0, ["kept"]),
        (0.0, None, 0.0, 0, ["kept"]),
        (0.0, 0.0, 0.21, 0, ["delay"]),
        (0.0, 0.0, 0.0, 1, ["delay"]),
    ],
)
def test_each_bar_can_be_missed(
    beside: float, kept: float | None, delay: float, failures: int, missed: list[str]
) -> None:
    delays = Delays([delay], failures)
    cost = connection.Cost("shape", Ending("closed"), 1.0, beside, 0.0, kept, delays)
    assert cost.faults == missed
    bars = connection.make_figures([cost]).bars
    assert sum(not bar.is_reached for bar in bars) == len(missed)


CHAT_STREAM = [
    {"id": 1, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]},
    {"id": 1, "choices": [{"index": 0, "delta": {"content": "Hello"}, "finish_reason": None}]},
    {"id": 1, "choices": [{"index": 0, "delta": {"content": " you"}, "finish_reason": "stop"}]},
    "[DONE]",
]
CALL = {"index": 0, "id": "random", "function": {"name": "f", "arguments": '{"a"'}}
CALL_STREAM = [
    {"choices": [{"index": 0, "delta": {"tool_calls": [CALL]}}]},
    {
        "choices": [
            {"index": 0, "delta": {"tool_calls": [CALL | {"function": {"arguments": ":1}"}}]}}
        ]
    },
    "[DONE]",
]
TEXT_STREAM = [
    {"choices": [{"index": 1, "text": "a", "logprobs": {"tokens": ["a"]}}]},
    {
        "choices": [
            {"index": 1, "text": "b", "logprobs": {"tokens": ["b"]}, "finish_reason": "stop"}
        ]
    },
    "[DONE]",
]
MESSAGE_STREAM = [
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "a"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "b"}},
    {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
    {"type": "message_stop"},
]
RESPONSE_STREAM = [
    {"type": "response.output_text.delta", "delta": "a"},
    {"type": "response.completed", "response": {"id": "random", "output": [{"text": "ab"}]}},
]


def streamed(events: list[Any]) -> bytes:
    lines = [event if isinstance(event, str) else json.dumps(event) for event in events]
    return "".join(f"data: {line}\n\n" for line in lines).encode()


@pytest.mark.parametrize(
    ("path", "events", "expected"),
    [
        (CHAT, CHAT_STREAM, {"0 content": "Hello you", "0 finish": "stop"}),
        (
            CHAT,
            CALL_STREAM,
            {
                "0 tool_calls 0 function name": "f",
                "0 tool_calls 0 function arguments": '{"a":1}',
            },
        ),
        (TEXT, TEXT_STREAM, {"1 text": "ab", "1 logprobs tokens": ["a", "b"], "1 finish": "stop"}),
        (
            MESSAGES,
            MESSAGE_STREAM,
            {"texts": {"0 text": "ab"}, "stops": [{"stop_reason": "end_turn"}]},
        ),
        (RESPONSES, RESPONSE_STREAM, {"output": [{"text": "ab"}]}),
    ],
)
def test_streams_are_compared_by_their_joined_content(
    path: str, events: list[Any], expected: Any
) -> None:
    question = Question("", path, {"stream": True})
    assert extract_comparable(question, streamed(events)) == expected
    with pytest.raises(BrokenAnswer):
        extract_comparable(question, streamed(events[:-1]))


def test_whole_answers_are_compared_without_ids_times_and_usage() -> None:
    answer = {"id": "random", "created": 1, "usage": {}, "choices": [{"text": "a", "id": "x"}]}
    found = extract_comparable(Question("", TEXT, {}), json.dumps(answer).encode())
    assert found == {"choices": [{"text": "a"}]}


def test_the_questions_cover_every_route() -> None:
    asked = list_questions()
    assert len({question.name for question in asked}) == len(asked)
    assert {CHAT, TEXT, MESSAGES, RESPONSES, "/tokenize"} <= {question.path for question in asked}
    assert {question.is_streamed for question in asked} == {True, False}


@pytest.mark.parametrize(
    ("answers", "altered", "lost", "refused"),
    [
        ([(200, {"text": "right"})], 0, 0, 0),
        ([(200, {"text": "wrong"})], 1, 0, 0),
        ([(500, {})], 0, 1, 0),
        ([(503, {}), (503, {}), (200, {"text": "right"})], 0, 0, 2),
    ],
)
async def test_altered_and_lost_answers_are_counted(
    monkeypatch: pytest.MonkeyPatch,
    answers: list[tuple[int, Any]],
    altered: int,
    lost: int,
    refused: int,
) -> None:
    waiting = iter(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        status, body = next(waiting)
        return httpx.Response(status, json=body, headers={"Retry-After": "0"})

    monkeypatch.setattr("benchmarks.hostile_clients.witness_clients.PAUSE_SECONDS", 0.0)
    seen, question = Witnessed(), Question("q", TEXT, {})
    async with httpx.AsyncClient(
        transport=httpx.MockTransport(answer), base_url="http://localhost"
    ) as client:
        await ask_and_compare(client, question, {"q": {"text": "right"}}, seen)
    assert (seen.asked, seen.altered, seen.lost, seen.refused) == (1, altered, lost, refused)
    assert len(seen.failures) == altered + lost


async def test_a_request_that_only_gets_503_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.hostile_clients.witness_clients.TIMEOUT_SECONDS", 0.05)
    full = httpx.MockTransport(lambda _: httpx.Response(503, headers={"Retry-After": "0.01"}))
    async with httpx.AsyncClient(transport=full, base_url="http://localhost") as client:
        with pytest.raises(Lost, match="Timeout"):
            await ask(client, Question("q", TEXT, {}), Witnessed())


def test_a_swarm_reports_what_it_sent(served: Address) -> None:
    with hostile_swarm(served.port, seed=1, clients=3, seconds=0.3) as sent:
        pass
    assert sent.requests > 0
    assert sum(sent.by_manner.values()) > 0
    assert served.get("/health") == '{"status":"ok"}'


@pytest.mark.parametrize(
    ("seen", "restarts", "faults", "missed"),
    [
        (Witnessed(asked=9), 0, [], 0),
        (Witnessed(asked=9, altered=1), 0, [], 1),
        (Witnessed(asked=9, lost=1), 1, [], 2),
        (Witnessed(asked=9), 0, ["1 KV pages of an idle server"], 1),
    ],
)
def test_every_altered_or_lost_answer_misses_a_bar(
    seen: Witnessed, restarts: int, faults: list[str], missed: int
) -> None:
    memory = Memory(1, 1)
    one = witnesses.Round(1, seen, Sent(), restarts, 0, memory, memory, faults)
    figures = witnesses.make_figures([one], Namespace(seconds=1.0, hostile=1, witnesses=1))
    assert sum(not bar.is_reached for bar in figures.bars) == missed
