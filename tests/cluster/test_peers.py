"""Tests of servers that run each other's requests, over a network of this machine."""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from engine.errors import EngineDied, PassFailed, QueueFull, RequestError
from tests.cluster.fleet import FAST_MS, SLOW_MS, far, head
from tests.server.fake_engine import EOS, FakeEngines, Script, ids_of

CHAT = {"messages": [{"role": "user", "content": "Hello"}], "seed": 1}
LONG = "One two three four five six seven eight nine ten. " * 4
REQUESTS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2, "n": 2}),
    "stream": ("/v1/chat/completions", CHAT | {"stream": True, "provenance": "tree"}),
    "text": ("/v1/completions", {"prompt": ["a", "b"], "seed": 1, "echo": True, "logprobs": 1}),
    "best_of": ("/v1/completions", {"prompt": "a", "seed": 1, "best_of": 3, "n": 2}),
    "stop": ("/v1/chat/completions", CHAT | {"stop": ["there"]}),
    "responses": ("/v1/responses", {"input": "Hello", "stream": True}),
    "messages": (
        "/v1/messages",
        {"messages": CHAT["messages"], "max_tokens": 20, "model": "main"},
    ),
}


def answers(text: str = LONG) -> Script:
    return Script(answers=lambda choice: (*ids_of(f"{choice}: {text}"), EOS), burst=5)


def without_names(text: str) -> str:
    """Return an answer without ids, times and durations."""

    def clean(value: Any) -> Any:
        if isinstance(value, dict):
            hidden = ("id", "item_id", "created", "created_at", "completed_at", "timings", "seed")
            return {key: clean(own) for key, own in value.items() if key not in hidden}
        return [clean(own) for own in value] if isinstance(value, list) else value

    lines = [line.removeprefix("data: ") for line in text.splitlines()]
    found = [clean(json.loads(line)) for line in lines if line[:1] == "{"]
    return json.dumps(found or clean(json.loads(text)), sort_keys=True)


@pytest.mark.parametrize("kind", REQUESTS)
async def test_an_answer_of_a_peer_is_that_of_one_server(kind: str) -> None:
    path, body = REQUESTS[kind]
    script = answers()
    async with head(engines=FakeEngines(script)) as alone:
        expected = (await alone.client.post(path, json=body)).text
    async with (
        far(FakeEngines(script)) as peer,
        head(peer.url, engines=FakeEngines(script)) as ours,
    ):
        await ours.until("ready")
        found = (await ours.client.post(path, json=body)).text
        assert without_names(found) == without_names(expected)
        assert peer.engines.engine.requests and not ours.engines.engine.requests


async def test_the_faster_server_is_preferred_and_a_slow_one_is_the_fallback() -> None:
    async with far(FakeEngines(), SLOW_MS) as peer, head(peer.url, pass_ms=FAST_MS) as ours:
        await ours.until("ready")
        await ours.client.post("/v1/chat/completions", json=CHAT)
        assert not peer.engines.engine.requests
        ours.engines.script.refuse = QueueFull("full")
        answer = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 200 and peer.engines.engine.requests


async def streamed(ours: Any, body: dict[str, Any], path: str = "/v1/chat/completions") -> Any:
    answer = await ours.client.post(path, json=body | {"stream": True, "return_token_ids": True})
    data = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
    return [json.loads(line) for line in data]


def text_of(chunks: list[Any]) -> dict[int, str]:
    texts: dict[int, str] = {}
    for choice in (choice for chunk in chunks for choice in chunk.get("choices", ())):
        texts[choice["index"]] = texts.get(choice["index"], "") + (
            choice["delta"].get("content") or ""
        )
    return texts


@pytest.mark.parametrize(
    "error",
    [
        EngineDied("died"),
        EngineDied("unloaded", "engine_closed"),
        PassFailed("no memory", "out_of_memory"),
    ],
)
async def test_a_stream_that_a_peer_loses_goes_on_here_with_the_same_text(
    error: Exception,
) -> None:
    broken = replace(answers(), error=error, error_after=4)
    async with (
        far(FakeEngines(broken)) as peer,
        head(peer.url, engines=FakeEngines(answers())) as ours,
    ):
        await ours.until("ready")
        chunks = await streamed(ours, CHAT | {"n": 2})
        assert text_of(chunks) == {0: f"0: {LONG}", 1: f"1: {LONG}"}
        (request,) = ours.engines.engine.requests
        assert {tail.choice: len(tail.ids) for tail in request.emitted} == {0: 20, 1: 20}
        assert all(tail.is_read for tail in request.emitted)
        assert chunks[-1]["timings"]["resumed"] == 1
        assert (await ours.status())[0]["lost"] == 1 and ours.peers.num_moved == 1


async def test_a_server_that_dies_in_mid_stream_is_replaced_by_another_peer() -> None:
    held = replace(answers(), pause=asyncio.Event())
    async with (
        far(FakeEngines(answers()), SLOW_MS / 2) as second,
        far(FakeEngines(held)) as first,
        head(first.url, second.url, engines=FakeEngines(answers())) as ours,
    ):
        await ours.until("ready")
        await ours.peers.wait_for_report(1.0)
        asking = asyncio.create_task(streamed(ours, CHAT))
        await first.engines.engine.request_started.wait()
        await asyncio.sleep(0.1)  # for its first tokens
        await first.engines.engine.close()  # its streams end with an error
        assert text_of(await asking) == {0: f"0: {LONG}"}
        assert second.engines.engine.requests[0].emitted[0].is_read
        assert not ours.engines.engine.requests


async def test_an_error_of_the_request_is_not_tried_elsewhere() -> None:
    refusing = replace(answers(), error=RequestError("no", "request_failed"), error_after=0)
    async with far(FakeEngines(refusing)) as peer, head(peer.url) as ours:
        await ours.until("ready")
        answer = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 400 and answer.json()["error"]["code"] == "request_failed"
        assert not ours.engines.engine.requests


async def test_another_fingerprint_gets_new_requests_only_and_says_so() -> None:
    other = replace(answers(), fingerprint="fp_other", error=EngineDied("died"), error_after=4)
    async with (
        far(FakeEngines(other)) as peer,
        head(peer.url, engines=FakeEngines(answers()), load_timeout=0.3) as ours,
    ):
        await ours.until("ready", "new requests only")
        asking = asyncio.create_task(streamed(ours, CHAT))
        await peer.engines.engine.request_started.wait()
        peer.engines.script.refuse = EngineDied("no more")
        chunks = await asking
        assert chunks[0]["system_fingerprint"] == "fp_other"
        error = chunks[-1]["error"]
        assert error["code"] == "stream_cut" and error["seed"] == 1
        assert error["continue_tokens"] == {"0": list(ids_of(f"0: {LONG}"[:20]))}
        assert not ours.engines.engine.requests  # the stream was never mixed
        peer.engines.script.error = peer.engines.script.refuse = None
        rest = {"continue_tokens": error["continue_tokens"], "fingerprint": error["fingerprint"]}
        await ours.until("ready")
        begun = text_of(chunks)[0]
        assert begun + text_of(await streamed(ours, CHAT | rest))[0] == f"0: {LONG}"
        given = {"continue_tokens": error["continue_tokens"]}  # of an engine that is not named
        await streamed(ours, CHAT | given)
        assert len(ours.engines.engine.requests) == 1


async def test_other_weights_are_never_used() -> None:
    other = replace(answers(), files="others", fingerprint="fp_other")
    async with far(FakeEngines(other)) as peer, head(peer.url) as ours:
        await ours.until("away", "other weights")
        assert (await ours.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        assert not peer.engines.engine.requests
        refused = await ours.client.post(
            "/v1/chat/completions", json=CHAT | {"fingerprint": "fp_other"}
        )
        assert refused.json()["error"]["code"] == "fingerprint_mismatch"


async def test_an_answer_that_a_peer_has_no_room_for_goes_on_here() -> None:
    small = replace(answers(), context_length=390)
    async with (
        far(FakeEngines(small)) as peer,
        head(peer.url, engines=FakeEngines(answers(LONG * 2))) as ours,
    ):
        peer.engines.script.answers = lambda choice: (*ids_of(f"{choice}: {LONG * 2}"), EOS)
        await ours.until("ready")
        assert text_of(await streamed(ours, CHAT)) == {0: f"0: {LONG * 2}"}
        assert peer.engines.engine.requests and ours.engines.engine.requests


async def test_all_servers_full_is_a_503_that_says_when_to_try_again() -> None:
    full = Script(refuse=QueueFull("full"))
    async with far(FakeEngines(full)) as peer, head(peer.url, engines=FakeEngines(full)) as ours:
        await ours.until("ready")
        answer = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503 and answer.headers["Retry-After"]


async def test_a_client_that_leaves_ends_its_request_at_the_peer() -> None:
    held = replace(answers(), pause=asyncio.Event())
    async with far(FakeEngines(held)) as peer, head(peer.url) as ours:
        await ours.until("ready")
        asking = asyncio.create_task(ours.client.post("/v1/chat/completions", json=CHAT))
        async with asyncio.timeout(10):
            await peer.engines.engine.request_started.wait()
            asking.cancel()
            await peer.engines.engine.request_closed.wait()
        assert ours.peers.placement.num_placed(peer.url) == 0


async def test_a_request_of_a_peer_is_never_sent_on() -> None:
    """The peer has a peer of its own, which is faster, and runs the request all the same."""
    async with (
        far(FakeEngines(answers())) as third,
        far(FakeEngines(answers()), SLOW_MS / 2, peers_of=[third.url]) as second,
        head(second.url, engines=FakeEngines(answers())) as ours,
    ):
        await ours.until("ready")
        await ours.client.post("/v1/chat/completions", json=CHAT)
        assert len(second.engines.engine.requests) == 1
        assert not third.engines.engine.requests
