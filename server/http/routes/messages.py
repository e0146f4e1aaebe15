"""The routes POST /v1/messages and /v1/messages/count_tokens of Anthropic's API."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.doors.messages.errors import message_error
from server.doors.messages.events import MessageWriter
from server.doors.messages.request import NAMES, chat_fields
from server.http.api import Api
from server.http.body import body_of
from server.http.door import chat_of, num_tokens, respond_in, respond_with_tokenizer
from server.models.lending import LoadedModel
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
    request: Request, body: Annotated[MessagesRequest, Depends(body_of(MessagesRequest))]
) -> Response:
    """Answer the last message of a conversation."""
    chat = await chat_of(body, chat_fields, NAMES)
    return await respond_in(request, chat, MessageWriter(request.state.request_id), NAMES)


@api.post("/messages/count_tokens", CountTokensRequest, CountedTokens)
async def count_tokens(
    request: Request, body: Annotated[CountTokensRequest, Depends(body_of(CountTokensRequest))]
) -> Response:
    """Count the tokens of a request's prompt."""
    chat = await chat_of(body, chat_fields, NAMES)

    def work(model: LoadedModel) -> CountedTokens:
        return {"input_tokens": num_tokens(chat, model)}

    return await respond_with_tokenizer(request, chat.model, work, NAMES)
