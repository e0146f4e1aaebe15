"""What a chat request comes to on one model, before the engine is asked. Pure.

Takes a while for long chats and for grammars: call it in a thread.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

from engine.messages import ModelInfo
from server.forced import answer_grammar, behind_thought
from server.formats import Formats
from server.parsing.pieces import Parser
from server.prompt import begun_answer, chat_ids, chat_text
from server.schemas.chat import ChatRequest
from server.tokenizer import Tokenizer
from server.tools import tool_use


@dataclass(frozen=True)
class Prepared:
    """A prompt, what the answer must match, and how it is read."""

    prompt: tuple[int, ...]
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
        grammar,
        tokenizer.special_tokens(marks),
        functools.partial(formats.parser, use.names, before),
    )
