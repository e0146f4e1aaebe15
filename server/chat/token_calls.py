"""Between texts and tokens: what the text process does for /tokenize and its relatives.

Answers are JSON already: of a large text, the front end would take seconds to write them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

from engine.messages import ModelInfo
from engine.parsing.selection import formats_of
from engine.text.detokenize import TokenBytes
from server.chat.prompt import ChatPrompt, chat_prompt
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.checking import check_object, parse_body
from server.schemas.tokens import (
    Detokenized,
    DetokenizeRequest,
    Piece,
    Rendered,
    Tokenized,
    TokenizeRequest,
)
from server.text.tokenizer import Tokenizer

ResultT = TypeVar("ResultT")

# The longest text that is tokenized here, in bytes. The tokenizer takes up to 416 bytes of memory
# per byte (tokenizers 0.23: letters and line ends in turn), so 256 KiB take 104 MB. A longer text
# is accepted if it has at most 8 bytes per token of the context: most such texts fit the context.
LONGEST_TEXT = 256 * 2**10
BYTES_PER_TOKEN = 8
LONGEST_ANSWER = 32 * 2**20  # bytes: as much as a body may have by default


class Known(NamedTuple, Generic[ResultT]):
    """What was found out about a chat.

    Args:
        left_out: what of the request the model would not be given.
    """

    result: ResultT
    left_out: list[str]


def tokenized(
    tokenizer: Tokenizer, raw: bytes, info: ModelInfo, tools: str | None, reasoning: str | None
) -> Known[bytes]:
    """Return the answer to /tokenize. Raises `ApiError` 400. `tools`, `reasoning`: as `prepare`."""
    body = parse_body(TokenizeRequest, raw)
    chat = chat_to_tokenize(body)
    if chat is None:
        param = "prompt" if body.content is None else "content"
        ids = _encode(tokenizer, body.text, info, special=body.special, param=param)
    else:
        prompt = _prompt(tokenizer, chat, tools, reasoning)
        ids = _encode(tokenizer, prompt.text, info, param="messages")
    spelling = tokenizer.bytes
    answer: Tokenized = {
        "tokens": [_piece(spelling, i) for i in ids] if body.with_pieces else list(ids),
        "count": len(ids),
        "max_model_len": info.context_length,
        "token_strs": tokenizer.names(ids) if body.return_token_strs else None,
    }
    return Known(_json(answer), [] if chat is None else [*chat.left_out, *prompt.left_out])


def chat_to_tokenize(body: TokenizeRequest) -> ChatRequest | None:
    """Return the chat that is to be tokenized; None for a text. Raises `ApiError` 400."""
    if body.messages is None:
        return None
    return check_object(ChatRequest, (body.model_extra or {}) | {"messages": body.messages})


def detokenized(tokenizer: Tokenizer, raw: bytes, info: ModelInfo) -> bytes:
    """Return the answer to /detokenize. Raises `ApiError` 400 for ids that the model has not."""
    tokens: Sequence[int] = parse_body(DetokenizeRequest, raw).tokens
    for place, token in enumerate(tokens):
        if token >= info.vocab_size:
            message = f"Token {token} is outside the vocabulary of {info.vocab_size}."
            raise ApiError(message, code="invalid_value", param=f"tokens.{place}")
    text = tokenizer.decode(tokens, special=True)
    answer: Detokenized = {"content": text, "prompt": text}
    return _json(answer)


def rendered(
    tokenizer: Tokenizer,
    raw: bytes,
    read: Callable[[bytes], ChatRequest],
    tools: str | None,
    reasoning: str | None,
) -> Known[bytes]:
    """Return the answer to /apply-template. Raises `ApiError` 400.

    `tools`, `reasoning`: as for `prepare`.
    """
    request = read(raw)
    prompt = _prompt(tokenizer, request, tools, reasoning)
    answer: Rendered = {"prompt": prompt.text}
    return Known(_json(answer), [*request.left_out, *prompt.left_out])


def num_tokens(
    tokenizer: Tokenizer,
    raw: bytes,
    info: ModelInfo,
    read: Callable[[bytes], ChatRequest],
    tools: str | None,
    reasoning: str | None,
) -> Known[int]:
    """Return how many tokens a chat's prompt has, also where they are too many for the model.

    `tools`, `reasoning`: as for `prepare`.
    """
    request = read(raw)
    prompt = _prompt(tokenizer, request, tools, reasoning)
    ids = _encode(tokenizer, prompt.text, info, param="messages")
    return Known(len(ids), [*request.left_out, *prompt.left_out])


def _prompt(
    tokenizer: Tokenizer, request: ChatRequest, tools: str | None, reasoning: str | None
) -> ChatPrompt:
    return chat_prompt(tokenizer, request, formats_of(tokenizer.template, tools, reasoning))


def _encode(
    tokenizer: Tokenizer, text: str, info: ModelInfo, *, special: bool = False, param: str
) -> tuple[int, ...]:
    """Return the token ids of a text. Raises `ApiError` 400 for a very long one."""
    nbytes = len(text.encode(errors="replace"))
    longest = max(LONGEST_TEXT, BYTES_PER_TOKEN * info.context_length)
    if nbytes > longest:
        message = (
            f"The text has {nbytes} bytes, and at most {longest} are tokenized at once. Send the "
            "text in parts, and divide it where a line or paragraph begins."
        )
        raise ApiError(message, code="text_too_long", param=param)
    return tokenizer.encode(text, special=special)


def _piece(spelling: TokenBytes, token: int) -> Piece:
    try:
        piece: str | list[int] = spelling[token].decode() or spelling.text(token)
    except UnicodeDecodeError:
        piece = list(spelling[token])
    return {"id": token, "piece": piece}


def _json(answer: Mapping[str, Any]) -> bytes:
    text = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    if len(text) > LONGEST_ANSWER:
        message = (
            f"The answer would have {len(text)} bytes, and at most {LONGEST_ANSWER} are sent. "
            "Send the text in parts."
        )
        raise ApiError(message, code="answer_too_large")
    return text
