"""Tests of replicas of the demo model on Ray: equal answers, also where they are killed."""

import random
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster_ray.collector import Collector, attributes_of, collecting
from tests.cluster_ray.servers import (
    SERVE,
    Cluster,
    chat,
    cluster,
    command_of,
    listening_addresses,
    loaded,
    longest_pause,
    pss_of,
    stream,
    wait_until,
)
from tests.demo_server import running_server

pytestmark = pytest.mark.timeout(900)

STORY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "max_tokens": 200,
    "temperature": 0.8,
    "seed": 7,
}
KINDS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("chat/completions", STORY | {"max_tokens": 40, "logprobs": True, "top_logprobs": 2, "n": 2}),
    ("chat/completions", STORY | {"max_tokens": 60, "stop": ["the"]}),
    ("chat/completions", STORY | {"max_tokens": 60, "frequency_penalty": 0.5}),
    ("completions", {"prompt": ["Once", "In"], "max_tokens": 30, "seed": 3, "echo": True}),
    ("completions", {"prompt": "Once", "max_tokens": 20, "seed": 4, "best_of": 3, "n": 2}),
    ("responses", {"input": "Hello", "max_output_tokens": 40, "temperature": 0}),
    ("messages", {"messages": STORY["messages"], "max_tokens": 40, "temperature": 0}),
)
HIDDEN = ("id", "created", "created_at", "completed_at", "timings", "seed", "item_id", "usage")
# As /proc/net/tcp and tcp6 write them: 127.0.0.1, ::ffff:127.0.0.1, ::1.
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
NUM_CHATS, NUM_KILLS = 30, 4
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def pick(found: Any) -> Any:
    """Return an answer without ids, times and what depends on what is cached."""
    if isinstance(found, dict):
        return {key: pick(own) for key, own in found.items() if key not in HIDDEN}
    return [pick(own) for own in found] if isinstance(found, list) else found


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as ours:
        yield ours


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("cluster")
    variables = {
        "UNDERSTUDY_TRACES": "true",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",  # milliseconds
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        with cluster(home, "--replicas", "3") as ours:
            ours.wait_for(3)
            yield ours


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Return what one server answers: to all kinds of requests, and the story."""
    home: Path = tmp_path_factory.mktemp("alone")
    with running_server(SERVE, home) as (_, url):
        return {
            "kinds": [pick(chat(url, body, path)) for path, body in KINDS],
            "story": stream(url, STORY)[0],
        }


def test_the_parts_of_ray_listen_on_loopback(fleet: Cluster) -> None:
    """Only the port that Ray gives each replica, which wants the token, is on all addresses."""
    replicas = set(fleet.processes("ray::ServeReplica"))
    own = [pid for pid in fleet.processes("") if b"multiprocessing" not in command_of(pid)]
    memory = sum(pss_of(pid) for pid in own)
    print(f"\nmemory beside the engines and the text process: {memory / 2**10:.0f} MB {loaded()}")
    assert len(replicas) == 3
    assert listening_addresses(set(own) - replicas) <= LOOPBACK


def test_the_span_at_a_replica_is_below_that_of_the_request(
    fleet: Cluster, collector: Collector
) -> None:
    headers = {"x-request-id": "traced", "traceparent": f"00-{TRACE}-{PARENT}-01"}
    url = f"{fleet.url}/chat/completions"
    answer = httpx.post(url, json=STORY | {"max_tokens": 8}, headers=headers, timeout=250)
    assert answer.headers["x-request-id"] == "traced"
    wait_until(lambda: len(collector.servers("traced")) == 2, "the spans")
    own, other = sorted(collector.servers("traced"), key=lambda span: span.start_time_unix_nano)
    assert (own.trace_id.hex(), own.parent_span_id.hex()) == (TRACE, PARENT)
    assert (other.trace_id, other.parent_span_id) == (own.trace_id, own.span_id)
    assert "url.path" in attributes_of(own) and "url.path" not in attributes_of(other)


def test_second_turns_land_where_their_pages_are(fleet: Cluster) -> None:
    def turns(number: int) -> tuple[int, int]:
        told = f"Chat {number}: " + "please remember what I say about this story. " * 12
        messages = [{"role": "user", "content": told}]
        first = chat(fleet.url, {"messages": messages, "max_tokens": 16, "temperature": 0})
        messages.append({"role": "assistant", "content": first["choices"][0]["message"]["content"]})
        time.sleep(1.5)  # a user reads; the next report comes
        messages.append({"role": "user", "content": "And then?"})
        second = chat(fleet.url, {"messages": messages, "max_tokens": 4, "temperature": 0})
        stored = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        return stored, first["usage"]["prompt_tokens"]

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(turns, range(NUM_CHATS)))
    landed = sum(stored >= prompt // 64 * 64 - 64 and stored > 64 for stored, prompt in found)
    print(f"\n{landed} of {NUM_CHATS} second turns found their pages")
    assert landed >= 0.95 * NUM_CHATS


def test_answers_are_those_of_one_server_while_replicas_are_killed(
    fleet: Cluster, expected: dict[str, Any]
) -> None:
    chance, ended, killed = random.Random(5), threading.Event(), 0
    pauses: list[float] = []

    def kill() -> None:
        nonlocal killed
        while not ended.wait(chance.uniform(4, 12)) and killed < NUM_KILLS:
            killed += fleet.kill_busiest() is not None

    def ask(number: int) -> bool:
        kind = number % (len(KINDS) + 2)
        if kind >= len(KINDS):
            text, times = stream(fleet.url, STORY)
            pauses.append(longest_pause(times))
            return bool(text == expected["story"])
        path, body = KINDS[kind]
        return bool(pick(chat(fleet.url, body, path)) == expected["kinds"][kind])

    thread = threading.Thread(target=kill)
    thread.start()
    with ThreadPoolExecutor(8) as pool:
        right = list(pool.map(ask, range(36)))
    ended.set()
    thread.join()
    print(f"\n{sum(right)} of {len(right)} answers were right with {killed} replicas killed;")
    print(f"longest pauses of streams: {sorted(round(own, 1) for own in pauses)} s {loaded()}")
    assert all(right) and killed
    fleet.wait_for(3)  # Ray has started others


def test_streams_of_a_killed_replica_go_on(fleet: Cluster, expected: dict[str, Any]) -> None:
    fleet.wait_for(3)
    with ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, fleet.url, STORY) for _ in range(6)]
        killed_at = 0.0
        while not killed_at and not all(own.done() for own in streams):
            time.sleep(0.5)
            if fleet.kill_busiest() is not None:
                killed_at = time.monotonic()
        found = [own.result() for own in streams]
    pauses = [
        min((at for at in times if at > killed_at), default=killed_at) - killed_at
        for _, times in found
    ]
    print(f"\nnext chunk after a replica was killed: {sorted(round(own, 2) for own in pauses)} s,")
    print(f"median {statistics.median(pauses):.2f} s {loaded()}")
    assert killed_at and {text for text, _ in found} == {expected["story"]}
