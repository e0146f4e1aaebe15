"""The routes /tokenize, /detokenize and /apply-template, and the count of a chat's tokens."""

from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.chat.answer import note_left_out
from server.chat.received import ChatSource, Received, read_chat
from server.chat.token_calls import Known, detokenized, rendered, tokenized
from server.http.api import Api
from server.http.body import body_of
from server.http.door import answer_of_model, count_input_tokens
from server.http.measure import measurement_of
from server.models.loaded_model import LoadedModel
from server.schemas.chat import ChatRequest
from server.schemas.tokens import (
    Detokenized,
    DetokenizeRequest,
    InputTokens,
    Rendered,
    Tokenized,
    TokenizeRequest,
)

api = Api()

Chat = Annotated[Received[ChatRequest], Depends(body_of(ChatRequest))]
Text = Annotated[Received[TokenizeRequest], Depends(body_of(TokenizeRequest))]
Tokens = Annotated[Received[DetokenizeRequest], Depends(body_of(DetokenizeRequest))]


@api.post("/tokenize", TokenizeRequest, Tokenized)
async def tokenize(request: Request, received: Text) -> Response:
    """Tokenize a text, or the prompt of a chat."""

    async def work(model: LoadedModel) -> bytes:
        parsers = model.entry.parsers
        known = await model.text.call_on_model(
            tokenized, received.raw, model.info, parsers.tools, parsers.reasoning
        )
        return _noted(request, known)

    return await answer_of_model(request, received.body.model, work)


@api.post("/detokenize", DetokenizeRequest, Detokenized)
async def detokenize(request: Request, received: Tokens) -> Response:
    """Return the text of tokens, including special tokens."""

    async def work(model: LoadedModel) -> bytes:
        return await model.text.call_on_model(detokenized, received.raw, model.info)

    return await answer_of_model(request, received.body.model, work)


@api.post("/apply-template", ChatRequest, Rendered)
async def apply_template(request: Request, received: Chat) -> Response:
    """Return the prompt that the template makes of a chat."""

    async def work(model: LoadedModel) -> bytes:
        parsers = model.entry.parsers
        known = await model.text.call_on_model(
            rendered, received.raw, read_chat, parsers.tools, parsers.reasoning
        )
        return _noted(request, known)

    return await answer_of_model(request, received.body.model, work)


@api.post("/chat/completions/input_tokens", ChatRequest, InputTokens)
async def count_chat_tokens(request: Request, received: Chat) -> Response:
    """Count the tokens of a chat's prompt."""
    source = ChatSource(received.body, received.raw, read_chat)
    return await count_input_tokens(request, source)


def _noted(request: Request, known: Known[bytes]) -> bytes:
    """Return an answer, and report what of the request it leaves out."""
    note_left_out(measurement_of(request), known.left_out)
    return known.result
