"""Answers of the real server whose engine is killed: they are those of an unbroken run."""

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.demo_server import DemoServer
from tests.server.test_demo import STARTERS, STORY, TOOLS

Body = dict[str, Any]

SECONDS = 300.0
PAUSE = 20.0  # seconds between two kills
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 9},
        "tags": {"items": {"type": "number"}},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "p", "schema": PERSON}}
TOOL_CALL = next(starter for starter in STARTERS if starter["id"] == "tool_call")
CHAT, TEXT = "/chat/completions", "/completions"
LOGPROBS = {"logprobs": True, "top_logprobs": 2}
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.1}

# The path and the body of each kind of request. All have a seed and at most 250 tokens.
KINDS: dict[str, tuple[str, Body]] = {
    "greedy": (CHAT, {"temperature": 0}),
    "sampled": (CHAT, {**LOGPROBS, "top_p": 0.9}),
    "penalties": (CHAT, PENALTIES),
    "bias": (CHAT, {"logit_bias": {"40": 2, "50": -100}, "min_tokens": 150}),
    "stop": (CHAT, {"stop": [" the end", "zzz"], "logprobs": True}),
    "n": (CHAT, {"n": 3}),
    "schema": (CHAT, {"response_format": SCHEMA, "max_tokens": 60}),
    "tools": (CHAT, {"tools": TOOLS, "messages": TOOL_CALL["messages"], "tool_choice": "required"}),
    "thinking": (CHAT, {"thinking_budget_tokens": 12}),
    "prediction": (CHAT, {"prediction": {"type": "content", "content": "Once upon a time"}}),
    "text": (TEXT, {"prompt": "Once upon a time", "logprobs": 1, "echo": True}),
    "best of": (TEXT, {"prompt": ["Once", "The sky"], "n": 1, "best_of": 3}),
    "regex": (TEXT, {"prompt": "Say", "guided_regex": "[a-f]{20,300}-[0-9]+"}),
    "responses": ("/responses", {"input": "Tell me a story.", "max_output_tokens": 250}),
    "messages": ("/messages", {"messages": STORY}),
}
STREAMED = [kind for kind in KINDS if kind not in ("best of", "responses", "messages")]
ALL = [f"{kind}, whole" for kind in KINDS] + [f"{kind}, streamed" for kind in STREAMED]


def body_of(kind: str, seed: int) -> tuple[str, Body]:
    """Return the path and the whole body of a request."""
    path, own = KINDS[kind]
    body: Body = {"model": "demo", "temperature": 1, "seed": seed}
    if path != "/responses":
        body["max_tokens"] = 250
    if path == CHAT:
        body["messages"] = STORY
    if path == "/messages":
        del body["seed"]
        body["temperature"] = 0
    return path, body | own


def bare(answer: Any) -> Any:
    """Return an answer without what differs between runs: ids, times, figures of the cache."""
    left_out = {"id", "created", "created_at", "completed_at", "timings", "call_id", "provenance"}
    left_out |= {"prompt_tokens_details", "input_tokens_details", "cache_read_input_tokens"}
    left_out |= {"input_tokens", "accepted_prediction_tokens", "rejected_prediction_tokens"}
    if isinstance(answer, dict):
        return {key: bare(value) for key, value in answer.items() if key not in left_out}
    return [bare(item) for item in answer] if isinstance(answer, list) else answer


def fold(chunks: list[Any]) -> Any:
    """Return what the chunks of a stream add up to: strings joined, lists joined."""
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for chunk in chunks:
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            parts = choice.get("delta", {}) | {
                key: choice[key] for key in ("text", "finish_reason") if choice.get(key)
            }
            calls = parts.pop("tool_calls", [])
            scores = choice.get("logprobs") or {}
            parts["calls"] = "".join(call["function"].get("arguments", "") for call in calls)
            parts |= {f"logprobs.{key}": own for key, own in scores.items() if own}
            own = choices.setdefault(choice["index"], {})
            for key, value in parts.items():
                if value is not None:
                    own[key] = own[key] + value if key in own else value
    return choices, bare(usage)


async def whole(client: httpx.AsyncClient, kind: str, seed: int) -> Any:
    path, body = body_of(kind, seed)
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, (kind, answer.text)
    return answer.json().get("timings", {}).get("resumed", 0), bare(answer.json())


async def streamed(
    client: httpx.AsyncClient, kind: str, seed: int, started: Callable[[], None]
) -> Any:
    path, body = body_of(kind, seed)
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    chunks: list[Any] = []
    async with client.stream("POST", path, json=body) as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line[6:])
                assert "choices" in chunk, (kind, chunk)
                chunks.append(chunk)
                if len(chunks) == 3:
                    started()
    resumed = [chunk["timings"]["resumed"] for chunk in chunks if "timings" in chunk]
    return max(resumed, default=0), fold(chunks)


def with_torch(server: int) -> list[int]:
    """Return the processes of a server that have loaded torch: text process and engine."""
    found = []
    for children in Path(f"/proc/{server}/task").glob("*/children"):
        for pid in children.read_text().split():
            maps = Path(f"/proc/{pid}/maps")
            with contextlib.suppress(OSError):  # it has just ended
                if "libtorch" in maps.read_text():
                    found.append(int(pid))
    return sorted(found)


async def run_all(
    url: str, names: Sequence[str], seed: int, kill: Callable[[], None], kills: int
) -> dict[str, tuple[int, Any]]:
    """Serve requests together, and kill the engine while they are streamed.

    Return for each the number of its restarts, and its answer.
    """
    num_begun = asyncio.Semaphore(0)
    running = {}
    async with httpx.AsyncClient(base_url=url, timeout=SECONDS) as client:
        for name in names:
            kind, how = name.split(", ")
            job = (
                whole(client, kind, seed)
                if how == "whole"
                else streamed(client, kind, seed, num_begun.release)
            )
            running[name] = asyncio.create_task(job)
        for number in range(kills):
            if number:
                await asyncio.sleep(PAUSE)
            await num_begun.acquire()
            kill()
        return {name: await task for name, task in running.items()}


@pytest.mark.slow
def test_answers_go_on_after_a_kill(served_demo: DemoServer) -> None:
    server, url = served_demo
    names, seed, kills = ALL, 2, 3
    want = asyncio.run(run_all(url, names, seed, lambda: None, 0))
    text, _ = with_torch(server.pid)  # the engine is started last

    def kill() -> None:
        for pid in with_torch(server.pid):
            if pid != text:
                os.kill(pid, signal.SIGKILL)

    got = asyncio.run(run_all(url, names, seed, kill, kills))
    for name, (_, answer) in want.items():
        assert got[name][1] == answer, name
    resumed = sum(times for times, _ in got.values())
    metrics = httpx.get(url.removesuffix("/v1") + "/metrics").text
    [line] = [own for own in metrics.splitlines() if own.startswith("understudy_streams_resumed_")]
    assert resumed > 0 and float(line.split()[-1]) >= resumed
