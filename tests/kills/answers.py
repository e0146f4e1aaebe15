"""Answers as far as they do not depend on times and passes, so that runs can be compared."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from tests.kills.kinds import Question

NAMES = {"id", "item_id", "call_id", "created", "created_at", "completed_at", "obfuscation"}
# What follows from passes and from the cache: how many tokens of the prompt other requests had.
FIGURES = {"timings", "prompt_tokens_details", "input_tokens_details", "provenance"}
FIGURES |= {"system_fingerprint"}  # it follows from the times of the files, too
FIGURES |= {"accepted_prediction_tokens", "rejected_prediction_tokens"}
PLAIN = {"method": "none"}
# The events before the first token; one may be repeated to keep the connection alive.
BEFORE_TOKENS = ("response.created", "response.in_progress", "message_start", "ping")


class ErrorAnswer(AssertionError):
    """An error that the server sent; `code` is the one that it has, "" if it has none."""

    def __init__(self, question: Question, status: int, said: str) -> None:
        super().__init__(str(question), status, said)
        self.status = status
        try:
            error = json.loads(said)
            error = error.get("response", error).get("error") or error
        except (ValueError, AttributeError):
            error = {}
        self.code = str(error.get("code") or error.get("type") or "")
        self.message = str(error.get("message") or "")


@dataclass
class Answer:
    """What a request got, and how it was sent.

    Args:
        content: what must not depend on deaths of the engine.
        resumed: how often the answer says that it has gone on.
        pause: the most seconds without a token after the first one.
        silence: the most seconds without a line.
    """

    content: Any
    resumed: int = 0
    pause: float = 0.0
    silence: float = 0.0


def bare(answer: Any) -> Any:
    """Return an answer without names, times, and what follows from passes."""
    if isinstance(answer, dict):
        own = {key: bare(value) for key, value in answer.items() if key not in NAMES | FIGURES}
        if "cache_read_input_tokens" in own:  # both together are the prompt
            own["input_tokens"] += own.pop("cache_read_input_tokens") or 0
        return own
    return [bare(item) for item in answer] if isinstance(answer, list) else answer


def fold(events: list[Any]) -> Any:
    """Return what the events of a stream add up to: strings joined, lists joined."""
    parts: dict[str, Any] = {}
    for event in events:
        if "choices" not in event:  # an event of the responses or messages API
            _fold_event(parts, event)
            continue
        for choice in event["choices"]:
            for key, value in _leaves(bare(choice), f"choice {choice['index']}"):
                _add(parts, key, value)
        if event.get("usage"):
            parts["usage"] = bare(event["usage"])
    return parts


def _fold_event(parts: dict[str, Any], event: Any) -> None:
    for key in ("token_ids", "prompt_token_ids"):  # which events have them depends on passes
        _add(parts, key, event.pop(key, None) or [])
    place = [event.get(key) for key in ("type", "output_index", "content_index", "index")]
    key = " ".join(str(part) for part in place if part is not None)
    if event["type"].endswith("delta") and event["type"] != "message_delta":
        for name, value in _leaves(bare(event["delta"]), key):
            _add(parts, name, value)
        for name, value in _leaves(bare(event.get("logprobs")), f"{key} logprobs"):
            _add(parts, name, value)
    elif event["type"] not in BEFORE_TOKENS:
        own = bare(event)
        own.pop("sequence_number", None)
        parts[key] = own


def _leaves(value: Any, name: str) -> list[tuple[str, Any]]:
    """Return the strings, lists and numbers in nested objects, each with the path to it."""
    if isinstance(value, dict):
        return [leaf for key, own in value.items() for leaf in _leaves(own, f"{name} {key}")]
    if isinstance(value, list) and name.endswith("tool_calls"):
        return [leaf for own in value for leaf in _leaves(own, f"{name} {own['index']}")]
    return [] if value is None else [(name, value)]


def _add(parts: dict[str, Any], key: str, value: Any) -> None:
    is_joined = isinstance(value, str | list) and not key.endswith(("type", "role", "reason"))
    parts[key] = parts[key] + value if is_joined and key in parts else value


@dataclass
class Asking:
    """A request that is being asked.

    Args:
        on_token: called for each event of a stream.
        num_hits: how often its engine was ended meanwhile.
    """

    question: Question
    model: str
    is_plain: bool = False  # whether its speculation is turned off
    on_token: Callable[[], None] = lambda: None
    num_hits: int = 0

    async def ask(self, client: httpx.AsyncClient) -> Answer:
        """Send the request, and return its answer. Raises `ErrorAnswer`."""
        body = self.question.body(self.model)
        if self.is_plain:
            body["speculation"] = PLAIN
        if self.question.is_streamed:
            return await self._streamed(client, body)
        answer = await client.post(self.question.path, json=body)
        if answer.status_code != 200:
            raise ErrorAnswer(self.question, answer.status_code, answer.text)
        return Answer(bare(answer.json()), answer.json().get("timings", {}).get("resumed", 0))

    async def _streamed(self, client: httpx.AsyncClient, body: dict[str, Any]) -> Answer:
        events: list[Any] = []
        resumed, pause, silence = 0, 0.0, 0.0
        last_line, last_event = time.monotonic(), None
        async with client.stream("POST", self.question.path, json=body) as stream:
            if stream.status_code != 200:
                said = (await stream.aread()).decode(errors="replace")
                raise ErrorAnswer(self.question, stream.status_code, said)
            async for line in stream.aiter_lines():
                now = time.monotonic()
                silence, last_line = max(silence, now - last_line), now
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                if event.get("error") or (event.get("response") or {}).get("error"):
                    raise ErrorAnswer(self.question, stream.status_code, line[6:])
                if event.get("type") == "ping":
                    continue
                if last_event is not None:
                    pause = max(pause, now - last_event)
                last_event = now
                events.append(event)
                self.on_token()
                resumed = max(resumed, (event.get("timings") or {}).get("resumed", 0))
        return Answer(fold(events), resumed, pause, silence)
