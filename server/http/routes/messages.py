"""The routes POST /v1/messages and /v1/messages/count_tokens of Anthropic's API."""

import json
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.chat.received import Received
from server.doors.messages.errors import message_error
from server.doors.messages.events import MessageWriter, ping
from server.doors.messages.request import NAMES, chat_fields
from server.http.api import Api
from server.http.body import body_of
from server.http.door import answer_of_model, chat_of, count_of, respond_in
from server.models.loaded_model import LoadedModel
from server.schemas.message_answers import (
    CountedTokens,
    MessageAnswer,
    MessageErrorBody,
    MessageEvent,
)
from server.schemas.message_bodies import CountTokensRequest, MessagesRequest

api = Api(error=MessageErrorBody, error_body=message_error)


@api.post("/messages", MessagesRequest, MessageAnswer, MessageEvent)
async def create_message(
    request: Request,
    received: Annotated[Received[MessagesRequest], Depends(body_of(MessagesRequest))],
) -> Response:
    """Answer the last message of a conversation."""
    source = await chat_of(request, received, chat_fields, NAMES)
    writer = MessageWriter(request.state.request_id)
    return await respond_in(request, source, writer, NAMES, ping)


@api.post("/messages/count_tokens", CountTokensRequest, CountedTokens)
async def count_tokens(
    request: Request,
    received: Annotated[Received[CountTokensRequest], Depends(body_of(CountTokensRequest))],
) -> Response:
    """Count the tokens of a request's prompt."""
    source = await chat_of(request, received, chat_fields, NAMES)

    async def work(model: LoadedModel) -> bytes:
        answer: CountedTokens = {"input_tokens": await count_of(request, source, model)}
        return json.dumps(answer, separators=(",", ":")).encode()

    return await answer_of_model(request, source.chat.model, work, NAMES)
