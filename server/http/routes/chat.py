"""The route POST /v1/chat/completions of the OpenAI API."""

import functools
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.chat.chat_completion import chat_chunks
from server.chat.chat_writer import fold_chat
from server.chat.received import ChatSource, Received, read_chat
from server.http.api import Api
from server.http.body import body_of
from server.http.respond import respond
from server.schemas.answers import ChatChunk, ChatCompletion
from server.schemas.chat import ChatRequest

api = Api()


@api.post("/chat/completions", ChatRequest, ChatCompletion, ChatChunk)
async def create_chat_completion(
    request: Request, received: Annotated[Received[ChatRequest], Depends(body_of(ChatRequest))]
) -> Response:
    """Answer the last message of a conversation."""
    source = ChatSource(received.body, received.raw, read_chat)
    fold = functools.partial(fold_chat, logprobs=bool(received.body.logprobs))
    return await respond(request, source.chat, functools.partial(chat_chunks, source), fold)
