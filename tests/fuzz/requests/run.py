"""Send requests to a server, and say what is wrong with an answer."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from server.config.registry import Registry
from server.config.settings import Settings
from server.http.app import create_app
from tests.fuzz.requests.clients import CHAT, MESSAGES, RESPONSES, TEXT
from tests.fuzz.requests.marks import Expected, expected_texts
from tests.fuzz.requests.mutations import make_request
from tests.server.bodies import check
from tests.server.conftest import entry, events, serving
from tests.server.fake_engine import FakeEngines, transformers_tokenizer

CONTEXT = 1 << 24
TIMEOUT_S = 120.0
LOAD_TIMEOUT_S = 600.0  # of the first request, which loads the tokenizer
IGNORED = "x-understudy-ignored"
ANSWER = "Hello there."
# The codes of errors that are about no single field.
OF_THE_WHOLE = ("invalid_json", "body_too_deep", "too_many_values", "request_too_complex")
WITNESS = {"model": "local", "messages": [{"role": "user", "content": "Who is there?"}]}


@dataclass(frozen=True)
class Outcome:
    """The status of one answer, and what is wrong with it; "" if nothing is."""

    seed: int
    path: str
    status: int
    wrong: str


class Target:
    """A server under test: sends a request, and sees the prompts that its engine got."""

    def __init__(self, client: httpx.AsyncClient, engines: FakeEngines) -> None:
        self._client = client
        self._engines = engines

    async def run(self, seed: int) -> Outcome:
        """Send the request of a seed, and a witness after it."""
        path, body = make_request(seed)
        expected = expected_texts(path, body)
        for engine in self._engines.made:
            engine.requests.clear()
        try:
            answer = await self._client.post(path, content=json.dumps(body))
        except httpx.HTTPError as error:
            return Outcome(seed, path, 0, f"no answer: {error!r}")
        wrong = self._fault(path, body, answer, expected)
        wrong = wrong or await self._witness_fault()
        return Outcome(seed, path, answer.status_code, wrong)

    async def _witness_fault(self) -> str:
        try:
            answer = await self._client.post(CHAT, json=WITNESS)
        except httpx.HTTPError as error:
            return f"a witness got no answer: {error!r}"
        is_usual = answer.status_code == 200 and ANSWER in answer.text
        return "" if is_usual else f"a witness got {answer.status_code} {answer.text[:300]}"

    def _fault(self, path: str, body: Any, answer: httpx.Response, expected: Expected) -> str:
        try:
            is_whole = answer.status_code == 400 and any(
                code in answer.text for code in OF_THE_WHOLE
            )
            check(path, None if is_whole else body, answer)
        except (AssertionError, LookupError, ValueError) as error:
            said = answer.text[:300]
            return f"{answer.status_code} is not in the form of its API: {error!r} {said}"
        if answer.status_code != 200:
            return ""
        header = answer.headers.get(IGNORED, "")
        return _stream_fault(path, answer) or expected.fault(self._prompt(path, answer), header)

    def _prompt(self, path: str, answer: httpx.Response) -> str | None:
        """Return the prompt of an answer; None where it cannot be seen."""
        if path == "/v1/apply-template":
            prompt: str = answer.json()["prompt"]
            return prompt
        if path == "/v1/tokenize":
            tokens = [t["id"] if isinstance(t, dict) else t for t in answer.json()["tokens"]]
        elif path in (CHAT, MESSAGES, RESPONSES, TEXT):
            requests = [request for engine in self._engines.made for request in engine.requests]
            if not requests:  # nothing is generated with `max_tokens: 0`
                return None
            tokens = [token for request in requests for token in request.prompt]
        else:
            return None
        return bytes(token for token in tokens if token < 256).decode(errors="replace")


def _stream_fault(path: str, answer: httpx.Response) -> str:
    """Return what is wrong with the end of a stream."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        return ""
    seen = events(answer.text)
    last = seen[-1] if seen else "nothing"
    if path == MESSAGES:
        is_ended = isinstance(last, dict) and last["type"] == "message_stop"
    elif path == RESPONSES:
        is_ended = isinstance(last, dict) and last["type"] in (
            "response.completed",
            "response.incomplete",
        )
    else:
        chosen = [c for e in seen[:-1] for c in e["choices"] if c["finish_reason"] is not None]
        begun = {c["index"] for e in seen[:-1] for c in e["choices"]}
        is_ended = last == "[DONE]" and {c["index"] for c in chosen} == begun != set()
    return "" if is_ended else f"the stream ends with {last!r:.300}"


@asynccontextmanager
async def target(template: str, folder: Path) -> AsyncIterator[Target]:
    """Serve a model that has a chat template, with a text process, and yield it.

    Args:
        template: the text of the template.
        folder: an empty folder for the tokenizer.
    """
    transformers_tokenizer().save_pretrained(folder)
    engines = FakeEngines()
    engines.script.tokenizer_path = str(folder)
    engines.script.context_length = CONTEXT
    model = entry("main", chat_template=template)
    registry = Registry([model], "main", strict=False)
    app = create_app(Settings(keepalive=60), registry, engines)
    async with (
        serving(app) as url,
        httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as client,
    ):
        await client.post(CHAT, json=WITNESS, timeout=LOAD_TIMEOUT_S)
        yield Target(client, engines)
