"""The routes by which servers of one model work together: a report, and a request of a peer.

A request that comes here runs here: it is never sent on, so that peers cannot send it in a circle.
"""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from secrets import token_hex
from typing import Annotated

from fastapi import Query, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster.answering import AskedTexts, frames_of
from cluster.wire import SIGN_OF_LIFE, SIGN_SECONDS, Ask, line_of, read_ask, reports
from engine.errors import EngineDied, EngineError
from engine.messages import Tokens
from server.chat.asked_by_peer import check_grammar
from server.errors import ApiError
from server.http.api import Api
from server.http.auth import given_key
from server.http.body import read_body
from server.http.measure import measurement_of
from server.http.state import state_of
from server.metrics.peer_counts import PeerCounts
from server.models.loaded_model import LoadedModel
from server.models.replica import pages_for, report_of

api = Api(prefixes=("/v1",))
api.generating.append("/peer/generate")  # its lines are no events of the API


@api.get("/peer")
async def get_report(
    request: Request,
    since: Annotated[str, Query(description="the number of the last report, from 0")] = "0",
    instance: str = "",
) -> Response:
    """Return the load of this server, and the pages that it holds of the texts of the caller."""
    state = state_of(request)
    model = None if state.in_flight.is_stopping else state.models.ready
    owner = getattr(request.state, "key", "")
    if not (since.isascii() and since.isdigit() and len(since) < 20):
        message = "Invalid value for 'since': it must be the number of a report, such as 0."
        raise ApiError(message, code="invalid_value", param="since")
    if model is not None:
        model.read_contents()
    report = report_of(model, owner, given_key(request.headers), int(since), instance)
    return Response(reports.dump_json(report), media_type="application/json")


@api.post("/peer/generate", None, None)
async def generate(request: Request) -> Response:
    """Run a request of another server, and answer its tokens as lines of JSON."""
    state = state_of(request)
    settings = state.settings
    ask = read_ask(await read_body(request, settings.max_body_bytes, settings.client_timeout))
    model = state.models.ready
    if model is None:
        raise ApiError.unavailable("No model is loaded.", "model_loading")
    info = model.info
    if (info.files, info.fingerprint) != (ask.files, ask.fingerprint):
        raise ApiError(
            f"The loaded model has the fingerprint {info.fingerprint}, or other files.",
            code="fingerprint_mismatch",
            status=409,
        )
    if ask.message.params.grammar:
        await model.text.call_on_model(check_grammar, ask.message.params.grammar.encode())
    return _Lines(request, _lines(request, model, ask))


async def _lines(request: Request, model: LoadedModel, ask: Ask) -> AsyncGenerator[bytes, None]:
    """Yield the lines of the answer."""
    owner, models = getattr(request.state, "key", ""), state_of(request).models
    # The id may be in use: the same request may have been here a moment ago.
    name = f"{ask.message.request_id}@{token_hex(4)}"
    message = replace(ask.message, request_id=name, key=f"{owner}/{ask.message.key}")
    texts = AskedTexts(ask, lambda: pages_for(model, owner, given_key(request.headers)))
    counts = PeerCounts(measurement_of(request), model.entry.id, ask)

    async def run(on_prompt: Callable[[int], None]) -> AsyncGenerator[Tokens, None]:
        def note_prompt(done: int) -> None:
            counts.note_prompt(done)
            on_prompt(done)

        try:
            async with models.borrow(model.entry, counts.measured.wait) as borrowed:
                stream = borrowed.engine.run(
                    message,
                    on_prompt=note_prompt,
                    on_lost=counts.note_lost,
                    on_tokens=counts.note_generated,
                )
                async with contextlib.aclosing(stream):
                    async for tokens in stream:
                        texts.note(tokens)
                        counts.note(tokens)
                        yield tokens
            counts.complete()
        except EngineError as error:
            counts.fail(error)
            raise
        except ApiError as error:
            counts.fail(error)
            raise EngineDied(error.message, error.code or "engine_died") from error

    frames = frames_of(run, f"peer's {name}", sign_seconds=SIGN_SECONDS)
    try:
        async with contextlib.aclosing(frames):
            async for frame in frames:
                yield SIGN_OF_LIFE if frame is None else line_of(frame)
    finally:
        counts.leave()


class _Lines(Response):
    """A response of lines, which ends when the client leaves."""

    media_type = "application/x-ndjson"

    def __init__(self, request: Request, lines: AsyncGenerator[bytes, None]) -> None:
        super().__init__()
        del self.headers["content-length"]  # it is not known yet
        self._request, self._lines = request, lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begin = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(begin)
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(self._leave())
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.wait({sending, leaving})

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._lines):
            async for line in self._lines:
                await send({"type": "http.response.body", "body": line, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _leave(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass
