"""The routes POST /v1/responses and /v1/responses/input_tokens of the OpenAI API."""

import secrets
import time
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.chat.received import Received
from server.doors.responses.events import Head, ResponseWriter
from server.doors.responses.request import NAMES, chat_fields
from server.http.api import Api
from server.http.body import body_of
from server.http.door import chat_of, count_input_tokens, respond_in
from server.http.state import state_of
from server.schemas.response_answers import ResponseEvent, WholeResponse
from server.schemas.response_bodies import ResponseRequest
from server.schemas.tokens import InputTokens

api = Api()

Body = Annotated[Received[ResponseRequest], Depends(body_of(ResponseRequest))]


@api.post("/responses", ResponseRequest, WholeResponse, ResponseEvent)
async def create_response(request: Request, received: Body) -> Response:
    """Continue a conversation that the request holds whole. The server stores nothing."""
    source = await chat_of(request, received, chat_fields, NAMES)
    entry = state_of(request).registry.find(received.body.model)
    head = Head(secrets.token_hex(12), int(time.time()), entry.id)
    writer = ResponseWriter(received.body, head)
    return await respond_in(request, source, writer, NAMES, writer.keepalive)


@api.post("/responses/input_tokens", ResponseRequest, InputTokens)
async def count_response_tokens(request: Request, received: Body) -> Response:
    """Count the tokens of a request's prompt."""
    source = await chat_of(request, received, chat_fields, NAMES)
    return await count_input_tokens(request, source, NAMES)
