"""Between texts and tokens: /tokenize, /detokenize, /apply-template, and the count of a chat."""

import functools
from typing import Annotated

from fastapi import Depends, Request
from starlette.responses import Response

from server.chat.prompt import chat_text
from server.errors import ApiError
from server.http.api import Api
from server.http.body import body_of
from server.http.door import input_tokens, respond_with_tokenizer
from server.models.lending import LoadedModel
from server.schemas.chat import ChatRequest
from server.schemas.checking import check_object
from server.schemas.tokens import (
    Detokenized,
    DetokenizeRequest,
    InputTokens,
    Piece,
    Rendered,
    Tokenized,
    TokenizeRequest,
)

api = Api()

Chat = Annotated[ChatRequest, Depends(body_of(ChatRequest))]


@api.post("/tokenize", TokenizeRequest, Tokenized)
async def tokenize(
    request: Request, body: Annotated[TokenizeRequest, Depends(body_of(TokenizeRequest))]
) -> Response:
    """The tokens of a text or of a rendered chat."""
    chat = None
    if body.messages is not None:
        fields = (body.model_extra or {}) | {"messages": body.messages}
        chat = check_object(ChatRequest, fields)
    work = functools.partial(_tokenized, body, chat)
    return await respond_with_tokenizer(request, body.model, work)


@api.post("/detokenize", DetokenizeRequest, Detokenized)
async def detokenize(
    request: Request, body: Annotated[DetokenizeRequest, Depends(body_of(DetokenizeRequest))]
) -> Response:
    """The text of tokens, special ones too."""
    return await respond_with_tokenizer(request, body.model, functools.partial(_text, body.tokens))


@api.post("/apply-template", ChatRequest, Rendered)
async def apply_template(request: Request, body: Chat) -> Response:
    """A chat as the model reads it."""

    def work(model: LoadedModel) -> Rendered:
        return {"prompt": chat_text(model.tokenizer, body)}

    return await respond_with_tokenizer(request, body.model, work)


@api.post("/chat/completions/input_tokens", ChatRequest, InputTokens)
async def count_chat_tokens(request: Request, body: Chat) -> Response:
    """How many tokens a chat's prompt has."""
    return await respond_with_tokenizer(request, body.model, functools.partial(input_tokens, body))


def _tokenized(body: TokenizeRequest, chat: ChatRequest | None, model: LoadedModel) -> Tokenized:
    tokenizer = model.tokenizer
    if chat is None:
        ids = tokenizer.encode(body.text, special=body.special)
    else:
        ids = tokenizer.encode(chat_text(tokenizer, chat), special=False)
    return {
        "tokens": [_piece(model, i) for i in ids] if body.with_pieces else list(ids),
        "count": len(ids),
        "max_model_len": model.info.context_length,
        "token_strs": tokenizer.names(ids) if body.return_token_strs else None,
    }


def _piece(model: LoadedModel, token: int) -> Piece:
    spelling = model.tokenizer.bytes
    try:
        piece: str | list[int] = spelling[token].decode() or spelling.text(token)
    except UnicodeDecodeError:
        piece = list(spelling[token])
    return {"id": token, "piece": piece}


def _text(tokens: list[int], model: LoadedModel) -> Detokenized:
    known = model.info.vocab_size
    for place, token in enumerate(tokens):
        if token >= known:
            message = f"Token {token} is outside the vocabulary of {known}."
            raise ApiError(message, code="invalid_value", param=f"tokens.{place}")
    text = model.tokenizer.decode(tokens, special=True)
    return {"content": text, "prompt": text}
