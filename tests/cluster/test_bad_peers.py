"""Tests of peers that answer nonsense, hang or are not there, and of requests no server sends."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from cluster.report import Load
from cluster.served_model import ServedModel
from cluster.wire import (
    Ask,
    Emitted,
    Ended,
    Failure,
    Progress,
    Report,
    asks,
    line_of,
    read_ask,
    reports,
)
from engine.errors import (
    EngineDied,
    EngineError,
    PassFailed,
    QueueFull,
    RequestError,
)
from engine.messages import Generate, Origin, SamplingParams, Stats, TokenLogprob, Tokens
from tests.cluster.fleet import far, head
from tests.cluster.test_peers import CHAT, answers, streamed
from tests.server.fake_engine import FakeEngines

URL = "http://peer.test:8000"
WHOLE = Stats(1, 0, 1, 1, 0, 0, 1.0, 1.0)
GOOD = Tokens("r", 0, (72,), "H", origins=(Origin("target", 0, 1),))
LOAD = Load(0.0, 0, 4, 0.0, 100, 0.001, 0.0, 1024)
MODEL = ServedModel("main", "files", "fp_fake", ())
REPORT = Report("1", "a", 0, MODEL, LOAD, [], [], is_whole=True)

Answer = Callable[[httpx.Request], httpx.Response]


class Body(httpx.AsyncByteStream):
    """A body that has not been read when the answer begins, as over a network."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._content


def ok(content: bytes) -> httpx.Response:
    return httpx.Response(200, stream=Body(content))


class Slow(httpx.AsyncByteStream):
    """A body that says nothing any more after its first bytes."""

    def __init__(self, first: bytes = b"") -> None:
        self._first = first

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self._first
        await asyncio.sleep(0.3)
        raise httpx.ReadTimeout("it is silent")  # as a connection does


def peer_that(generate: Answer, report: Answer | None = None) -> httpx.MockTransport:
    """Return a peer with a good report that answers requests like this."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.method == "POST":
            return generate(request)
        found = ok(reports.dump_json(REPORT))
        return found if report is None else report(request)

    return httpx.MockTransport(answer)


def lines(*frames: Progress | Emitted | Ended | Failure, rest: bytes = b"") -> Answer:
    body = b"".join(line_of(frame) for frame in frames) + rest
    return lambda _: ok(body)


NONSENSE: dict[str, Answer] = {
    "text": lambda _: ok(b"<html>hello</html>\n"),
    "nothing": lambda _: ok(b""),
    "no end": lines(Progress(1), Emitted(GOOD)),
    "an end too early": lines(Emitted(GOOD), Ended()),
    "a cut line": lines(rest=b'{"kind": "tok'),
    "unknown tokens": lines(Emitted(replace(GOOD, ids=(1 << 40,)))),
    "negative tokens": lines(Emitted(replace(GOOD, ids=(-1,)))),
    "another choice": lines(Emitted(replace(GOOD, choice=7))),
    "origins": lines(Emitted(replace(GOOD, origins=(Origin("target", 0, 1),) * 2))),
    "log-probabilities": lines(Emitted(replace(GOOD, logprobs=(TokenLogprob(1, 0.0, ()),)))),
    "a replay": lines(Emitted(replace(GOOD, is_replayed=True))),
    "a finish": lines(Emitted(replace(GOOD, finish="tired", stats=WHOLE))),
    "no figures": lines(Emitted(replace(GOOD, finish="stop"))),
    "a long line": lambda _: ok(b"x" * (17 << 20)),
    "silence": lambda _: httpx.Response(200, stream=Slow(line_of(Progress(1)))),
    "a redirect": lambda _: httpx.Response(307, headers={"location": "http://elsewhere/"}),
    "an error": lambda _: httpx.Response(500, content=b"oops"),
    "a wrong key": lambda _: httpx.Response(401),
    "another model": lambda _: httpx.Response(409),
    "a refusal": lines(Failure("died", "no", "engine_closed")),
    "a full queue": lines(Failure("queue", "full")),
}


@pytest.mark.parametrize("kind", NONSENSE)
async def test_a_request_goes_on_here_whatever_a_peer_answers(kind: str) -> None:
    asked: list[httpx.Request] = []

    def generate(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        return NONSENSE[kind](request)

    async with head(URL, transport=peer_that(generate)) as ours:
        await ours.until("ready")
        answer = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200
        assert answer.json()["choices"][0]["message"]["content"] == "Hello there."
        assert len(asked) == 1 and asked[0].url.host == "peer.test"
        assert (await ours.status())[0]["lost"] == 1


async def test_what_comes_after_the_end_is_ignored() -> None:
    late = lines(Emitted(replace(GOOD, finish="stop", stats=WHOLE)), Emitted(GOOD), Ended())
    async with head(URL, transport=peer_that(late)) as ours:
        await ours.until("ready")
        answer = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert answer.json()["choices"][0]["message"]["content"] == "H"
        assert not ours.engines.engine.requests


def spoiled_load(name: str, value: str) -> Answer:
    """Return an answer whose report has another number in its load."""
    number = json.dumps(getattr(LOAD, name))
    raw = reports.dump_json(REPORT).decode().replace(f'"{name}":{number}', f'"{name}":{value}')
    assert value in raw
    return lambda _: ok(raw.encode())


BAD_REPORTS: dict[str, tuple[Answer, str]] = {
    "text": (lambda _: ok(b"hello"), "its report is none"),
    "a list": (lambda _: ok(b"[1]"), "its report is none"),
    "names": (
        lambda _: ok(reports.dump_json(replace(REPORT, added=["zz"]))),
        "names of pages",
    ),
    "protocol": (
        lambda _: ok(reports.dump_json(replace(REPORT, protocol=9))),
        "another protocol",
    ),
    "no number": (spoiled_load("prompt_seconds", "NaN"), "its report is none"),
    "infinite": (spoiled_load("row_seconds", "1e999"), "its report is none"),
    "negative": (spoiled_load("sequences", "-5"), "its report is none"),
    "huge": (spoiled_load("longest", "1" + "0" * 400), "its report is none"),
    "too long": (lambda _: ok(b" " * (17 << 20)), "too long"),
    "redirect": (lambda _: httpx.Response(301, headers={"location": "/x"}), "not followed"),
    "key": (lambda _: httpx.Response(401), "does not accept the key"),
    "older": (lambda _: httpx.Response(404), "older"),
    "silent": (lambda _: httpx.Response(200, stream=Slow()), "did not answer"),
    "empty": (
        lambda _: ok(reports.dump_json(replace(REPORT, model=None, load=None))),
        "no model loaded",
    ),
}


@pytest.mark.parametrize("kind", BAD_REPORTS)
async def test_a_peer_without_a_good_report_gets_nothing_and_status_says_why(kind: str) -> None:
    report, note = BAD_REPORTS[kind]

    def generate(_: httpx.Request) -> httpx.Response:
        raise AssertionError("no request may come here")

    async with head(URL, transport=peer_that(generate, report)) as ours:
        await ours.until("away", note)
        answer = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200
        assert note in (await ours.status())[0]["note"]


async def test_a_network_that_is_cut_and_comes_back() -> None:
    is_cut = False

    def report(_: httpx.Request) -> httpx.Response:
        if is_cut:
            raise httpx.ConnectError("no route to host")
        return ok(reports.dump_json(REPORT))

    async with head(URL, transport=peer_that(NONSENSE["text"], report)) as ours:
        await ours.until("ready")
        is_cut = True
        await ours.until("away", "no route to host")
        is_cut = False
        await ours.until("ready")


async def test_a_clock_that_is_wrong_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time of another machine is used, and none of this one's calendar."""
    async with (
        far(FakeEngines()) as peer,
        head(peer.url) as ours,
    ):
        await ours.until("ready")
        for shift in (-1e6, 1e9):
            now = time.time() + shift
            monkeypatch.setattr(time, "time", lambda now=now: now)
            answer = await ours.client.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == 200
        assert len(peer.engines.engine.requests) == 2


async def test_all_servers_gone_is_a_503_and_streams_are_told() -> None:
    broken = replace(answers(), error=EngineDied("died"), error_after=4)
    async with (
        far(FakeEngines(broken)) as peer,
        head(peer.url, engines=FakeEngines(answers()), load_timeout=0.3) as ours,
    ):
        await ours.until("ready")
        ours.engines.script.refuse = QueueFull("full")
        asking = asyncio.create_task(streamed(ours, CHAT))
        async with asyncio.timeout(20):
            await peer.engines.engine.request_started.wait()
        peer.engines.script.refuse = EngineDied("gone")
        error = (await asking)[-1]["error"]
        assert error["code"] == "stream_cut" and error["continue_tokens"]["0"]
        refused = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert refused.status_code == 503 and refused.headers["Retry-After"]


async def test_keys_go_to_the_peer_that_they_are_for() -> None:
    seen: list[str] = []

    def report(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("authorization", ""))
        return httpx.Response(401)

    async with head(URL, transport=peer_that(NONSENSE["text"], report), key="secret") as ours:
        await ours.until("away", "key")
        assert set(seen) == {"Bearer secret"}
        assert "secret" not in json.dumps((await ours.client.get("/v1/status")).json())


ASK = Ask("files", "fp_fake", Generate("r", (1, 2), SamplingParams(max_tokens=3)))
BAD_ASKS: dict[str, Any] = {
    "temperature": {"params": {"temperature": -1}},
    "infinity": {"params": {"temperature": 1e999}},
    "top_p": {"params": {"top_p": 2}},
    "seed": {"params": {"seed": -1}},
    "bias": {"params": {"logit_bias": [[1, 1e999]]}},
    "logprobs": {"params": {"logprobs": 1000}},
    "stop": {"params": {"stop": [""]}},
    "type": {"params": {"top_k": "many"}},
    "prompt": {"prompt": "text"},
    "choices": {"n": 1 << 20},
    "tails": {"emitted": [{"choice": 4, "ids": [1]}]},
    "twice": {"emitted": [{"choice": 0, "ids": [1]}, {"choice": 0, "ids": [1]}]},
    "nodes": {"traced_nodes": -1},
}


def spoiled(change: dict[str, Any]) -> bytes:
    raw = json.loads(asks.dump_json(ASK))
    raw["message"] |= {**change, "params": raw["message"]["params"] | change.get("params", {})}
    return json.dumps(raw).encode()


@pytest.mark.parametrize("kind", BAD_ASKS)
async def test_a_request_that_no_server_sends_is_refused(kind: str) -> None:
    async with head() as ours:
        body = spoiled(BAD_ASKS[kind])
        answer = await ours.client.post("/v1/peer/generate", content=body)
        assert answer.status_code == 400, answer.text
        assert not ours.engines.engine.requests


@pytest.mark.parametrize("change", [{"files": "x"}, {"fingerprint": "x"}])
async def test_a_request_for_another_model_is_refused(change: dict[str, Any]) -> None:
    async with head() as ours:
        body = asks.dump_json(replace(ASK, **change))
        answer = await ours.client.post("/v1/peer/generate", content=body)
        assert answer.status_code == 409


async def test_what_the_engine_refuses_comes_as_a_failure() -> None:
    async with head() as ours:
        ask = replace(ASK, message=replace(ASK.message, prompt=(1 << 20,)))
        answer = await ours.client.post("/v1/peer/generate", content=asks.dump_json(ask))
        assert json.loads(answer.text)["error"] == "request"


def test_a_request_comes_as_it_was_sent() -> None:
    assert read_ask(asks.dump_json(ASK)) == ASK


@pytest.mark.parametrize(
    "error",
    [
        RequestError("m", "c", "p"),
        PassFailed("m", "out_of_memory"),
        QueueFull("m"),
        EngineDied("m", "engine_closed"),
    ],
)
def test_errors_come_as_they_were_raised(error: EngineError) -> None:
    found = Failure.of(error).exception()
    assert (type(found), str(found), vars(found)) == (type(error), str(error), vars(error))
