"""The routes POST /v1/responses and /v1/responses/input_tokens of the OpenAI API."""

import functools
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.doors.responses.events import ResponseWriter
from server.doors.responses.request import NAMES, chat_fields
from server.http.api import Api
from server.http.body import body_of
from server.http.door import chat_of, input_tokens, respond_in, respond_with_tokenizer
from server.schemas import response_answers
from server.schemas.response_bodies import ResponseRequest
from server.schemas.tokens import InputTokens

api = Api()

Body = Annotated[ResponseRequest, Depends(body_of(ResponseRequest))]


@api.post("/responses", ResponseRequest, response_answers.Response, response_answers.ResponseEvent)
async def create_response(request: Request, body: Body) -> Response:
    """Continue a conversation that the request holds whole. The server stores nothing."""
    chat = await chat_of(body, chat_fields, NAMES)
    return await respond_in(request, chat, ResponseWriter(body), NAMES)


@api.post("/responses/input_tokens", ResponseRequest, InputTokens)
async def count_input_tokens(request: Request, body: Body) -> Response:
    """Count the tokens of a request's prompt."""
    chat = await chat_of(body, chat_fields, NAMES)
    work = functools.partial(input_tokens, chat)
    return await respond_with_tokenizer(request, chat.model, work, NAMES)
