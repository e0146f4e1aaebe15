"""What a chat request comes to on one model, before the engine is asked. Pure.

Takes a while for long chats and for grammars: call it in a thread.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from engine.messages import ModelInfo
from server.chat.answer_grammar import answer_grammar, behind_thought
from server.chat.prompt import begun_answer, chat_ids, chat_text, predicted_tokens
from server.chat.tools import tool_use
from server.models.tokenizer import Tokenizer
from server.parsing.parser import Parser
from server.parsing.selection import Formats
from server.schemas.chat import ChatRequest


@dataclass(frozen=True)
class Prepared:
    """A prompt, what of the answer is predicted and what it must match, and how it is read."""

    prompt: tuple[int, ...]
    prediction: tuple[int, ...]
    grammar: str  # as llguidance writes it; "": anything
    shown_tokens: tuple[int, ...]  # special tokens that the parser looks for in the text
    new_parser: Callable[[], Parser]


def prepare(
    tokenizer: Tokenizer, info: ModelInfo, formats: Formats, request: ChatRequest
) -> Prepared:
    """Raises `ApiError` 400 for messages that cannot be rendered and for schemas that cannot be
    followed."""
    use = tool_use(request)
    text = chat_text(tokenizer, request)
    before = begun_answer(request) or text
    tokens = tokenizer.added_tokens
    grammar = answer_grammar(request, use, formats.forced, tokens)
    if grammar:
        formats = formats.forced
        grammar = behind_thought(grammar, formats, before, tokenizer.template, tokens)
    marks = formats.special_tokens(tools=bool(use.tools))
    return Prepared(
        chat_ids(tokenizer, info, text),
        predicted_tokens(tokenizer, info, request.prediction) if request.prediction else (),
        grammar,
        tokenizer.special_tokens(marks),
        functools.partial(formats.parser, use.schemas, before),
    )
