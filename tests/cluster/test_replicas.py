"""Tests of a front end whose requests all run on replicas, which come and go."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest

from cluster import remote
from engine.errors import EngineDied, QueueFull
from engine.messages import PassStats
from tests.cluster.fleet import head
from tests.cluster.replicas import Near, Own, front
from tests.cluster.test_peers import CHAT, LONG, REQUESTS, answers, streamed, text_of, without_names
from tests.server.fake_engine import FakeEngines


@pytest.fixture(autouse=True)
def short_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WATCH_SECONDS", 0.02)
    monkeypatch.setattr(remote, "STATUS_SECONDS", 0.05)
    monkeypatch.setattr(remote, "SILENCE_SECONDS", 1.5)


def running(near: Near) -> str:
    """Return the name of the replica that runs a request."""
    return next(name for name, own in near.all.items() if own.engines.engine.running)


async def until_running(near: Near, num_tokens: int = 1) -> Own:
    """Wait until a replica has paused before the last token of an answer."""
    async with asyncio.timeout(10):
        while not any(own.engines.engine.num_paused for own in near.all.values()):
            await asyncio.sleep(0.01)
    return near.all[running(near)]


@pytest.mark.parametrize("kind", REQUESTS)
async def test_an_answer_of_replicas_is_that_of_one_server(kind: str) -> None:
    path, body = REQUESTS[kind]
    async with head(engines=FakeEngines(answers())) as alone:
        expected = (await alone.client.post(path, json=body)).text
    near = Near()
    for name in ("a", "b"):
        await near.add(name, answers())
    async with front(near) as ours:
        found = (await ours.client.post(path, json=body)).text
        assert without_names(found) == without_names(expected)
        assert any(own.engines.engine.requests for own in near.all.values())


@pytest.mark.parametrize("how", ["killed", "drained", "silent", "cancels its calls"])
async def test_a_stream_moves_with_the_same_text(how: str) -> None:
    near = Near()
    for name in ("a", "b"):
        await near.add(name, replace(answers(), pause=asyncio.Event()))
    async with front(near) as ours:
        await ours.until(2)
        asking = asyncio.create_task(streamed(ours, CHAT))
        first = await until_running(near)
        for own in near.all.values():
            if own is not first:
                own.engines.script.pause = None
        if how == "killed":
            near.kill(running(near))
        first.is_draining, first.is_silent = how == "drained", how == "silent"
        first.cancels = how == "cancels its calls"
        chunks = await asking
        assert text_of(chunks) == {0: f"0: {LONG}"}
        assert sum(bool(own.engines.engine.requests) for own in [first, *near.all.values()]) >= 2
        assert ours.replicas.num_moved == 1


async def test_a_drained_replica_ends_a_stream_that_no_other_can_go_on_with() -> None:
    near, pause = Near(), asyncio.Event()
    await near.add("a", replace(answers(), pause=pause))
    await near.add("other", replace(answers(), fingerprint="fp_other"))
    near.all["other"].is_draining = True
    async with front(near) as ours:
        await ours.until(1)
        asking = asyncio.create_task(streamed(ours, CHAT))
        await until_running(near)
        near.all["other"].is_draining, near.all["a"].is_draining = False, True
        async with asyncio.timeout(10):
            while "other" not in [own.name for own in ours.replicas.ready()]:
                await asyncio.sleep(0.02)
        pause.set()
        assert text_of(await asking) == {0: f"0: {LONG}"}
        assert not near.all["other"].engines.engine.requests


async def test_a_stream_without_a_like_replica_is_cut_with_its_ids() -> None:
    near = Near()
    await near.add("a", replace(answers(), pause=asyncio.Event()))
    async with front(near, load_timeout=0.4) as ours:
        await ours.until(1)
        asking = asyncio.create_task(streamed(ours, CHAT))
        await until_running(near)
        near.kill("a")
        await near.add("b", replace(answers(), fingerprint="fp_other"))
        error = (await asking)[-1]["error"]
        assert error["code"] == "stream_cut" and error["continue_tokens"]["0"]
        assert error["fingerprint"] == "fp_fake"
        # The next request runs on what is there now.
        assert text_of(await streamed(ours, CHAT)) == {0: f"0: {LONG}"}


async def test_no_replica_is_a_503_after_the_load_timeout_and_a_new_one_serves() -> None:
    near = Near()
    await near.add("a", answers())
    async with front(near, load_timeout=0.3) as ours:
        await ours.until(1)
        assert (await ours.client.post("/v1/chat/completions", json=CHAT)).status_code == 200
        near.kill("a")
        await ours.until(0)
        answer = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503 and answer.headers["Retry-After"]
        await near.add("b", answers())
        await ours.until(1)
        assert (await ours.client.post("/v1/chat/completions", json=CHAT)).status_code == 200


async def test_full_replicas_are_a_503_at_once() -> None:
    near = Near()
    await near.add("a", replace(answers(), refuse=QueueFull("full")))
    async with front(near) as ours:
        await ours.until(1)
        answer = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 503 and answer.headers["Retry-After"]


async def test_other_weights_join_but_get_nothing_and_status_says_so() -> None:
    near = Near()
    await near.add("a", answers())
    async with front(near) as ours:
        await ours.until(1)
        await ours.client.post("/v1/chat/completions", json=CHAT)
        await near.add("other", replace(answers(), files="others", fingerprint="fp_other"))
        await ours.until(2)
        for _ in range(4):
            await ours.client.post("/v1/chat/completions", json=CHAT)
        assert not near.all["other"].engines.engine.requests
        peers = (await ours.client.get("/v1/status")).json()["peers"]
        notes = {peer["url"]: (peer["state"], peer["note"]) for peer in peers}
        assert notes["a"] == ("ready", "")
        assert notes["other"][0] == "away" and "other weights" in notes["other"][1]


@pytest.mark.parametrize("nonsense", [None, "hello", SimpleNamespace(report=None, events=3)])
async def test_a_replica_of_another_version_gets_nothing_and_status_says_so(
    nonsense: object,
) -> None:
    near = Near()
    await near.add("a", answers())
    other = await near.add("other", answers(), version="0.0.1")
    other.nonsense = nonsense
    async with front(near) as ours:
        for _ in range(3):
            answer = await ours.client.post("/v1/chat/completions", json=CHAT)
            assert answer.status_code == 200
        await ours.until(1)
        assert not other.engines.engine.requests
        peers = (await ours.client.get("/v1/status")).json()["peers"]
        note = next(peer["note"] for peer in peers if peer["url"] == "other")
        assert "version" in note and ("0.0.1" in note) is (nonsense is None)


async def test_a_deployment_that_failed_is_an_error_with_its_reason() -> None:
    near = Near(failure="no such folder")
    async with front(near) as ours:
        answer = await ours.client.post("/v1/chat/completions", json=CHAT)
        assert answer.status_code == 500
        assert "no such folder" in answer.json()["error"]["message"]


async def test_passes_of_all_replicas_are_counted_once() -> None:
    near = Near()
    for name in ("a", "b"):
        await near.add(name, answers())
    async with front(near) as ours:
        await ours.client.post("/v1/chat/completions", json=CHAT)
        await ours.until(2)
        for own in near.all.values():
            for _ in range(3):
                own.engines.engine.on_pass(
                    PassStats(
                        rows=64,
                        sequences=1,
                        accepted=5,
                        draft_ms=0.0,
                        pass_ms=20.0,
                        link_gbps=1.0,
                    )
                )
        async with asyncio.timeout(10):
            while True:
                engine = (await ours.client.get("/v1/status")).json()["engine"]
                if engine["total"]["tokens"] >= 30:
                    break
                await asyncio.sleep(0.02)
        assert engine["total"]["tokens"] == 30 and engine["total"]["passes"] == 6


async def test_a_client_that_leaves_ends_its_request_on_the_replica() -> None:
    near = Near()
    own = await near.add("a", replace(answers(), pause=asyncio.Event()))
    async with front(near) as ours:
        asking = asyncio.create_task(ours.client.post("/v1/chat/completions", json=CHAT))
        await until_running(near)
        asking.cancel()
        async with asyncio.timeout(10):
            await own.engines.engine.request_closed.wait()
            while ours.replicas.placement.num_placed("a"):
                await asyncio.sleep(0.01)
        assert own.replica.waits().idle_seconds < 10


async def test_an_unloaded_model_ends_its_streams_and_is_there_again_for_the_next_request() -> None:
    near = Near()
    await near.add("a", replace(answers(), pause=asyncio.Event()))
    async with front(near) as ours:
        asking = asyncio.create_task(streamed(ours, CHAT))
        own = await until_running(near)
        body = {"grace": 0}
        assert (await ours.client.post("/v1/models/main/unload", json=body)).status_code == 200
        assert (await asking)[-1]["error"]["code"] == "engine_closed"
        own.engines.script.pause = None
        assert text_of(await streamed(ours, CHAT)) == {0: f"0: {LONG}"}


async def test_the_memory_of_replicas_cannot_be_limited_from_the_front() -> None:
    near = Near()
    await near.add("a", answers())
    async with front(near) as ours:
        await ours.client.post("/v1/chat/completions", json=CHAT)
        limits = {"ram": "1GiB"}
        answer = await ours.client.post("/v1/models/main/limits", json=limits)
        assert answer.status_code == 400 and "replicas" in answer.json()["error"]["message"]


async def test_health_is_that_of_the_engine() -> None:
    near = Near()
    own = await near.add("a", answers())
    own.replica.check_health()
    await own.replica.close()
    with pytest.raises(EngineDied):
        own.replica.check_health()


async def test_second_turns_go_where_their_pages_are() -> None:
    near = Near()
    for name in ("a", "b", "c"):
        await near.add(name, answers())
    async with front(near) as ours:
        await ours.until(3)
        for number in range(6):
            told = f"{number} {LONG}"
            first = [{"role": "user", "content": told}]
            found = text_of(await streamed(ours, {"messages": first}))
            was_at = [name for name, own in near.all.items() if asked(own, told)]
            await asyncio.sleep(0.1)  # the next report comes
            more = [{"role": "assistant", "content": found[0]}, {"role": "user", "content": "?"}]
            await streamed(ours, {"messages": first + more})
            assert [name for name, own in near.all.items() if asked(own, told)] == was_at
        assert sum(bool(own.engines.engine.requests) for own in near.all.values()) > 1


def asked(own: Own, text: str) -> bool:
    """Return whether a replica has had a request with this text."""
    return any(text.encode() in bytes_of(message.prompt) for message in own.engines.engine.requests)


def bytes_of(ids: Sequence[int]) -> bytes:
    return bytes(own for own in ids if own < 256)
