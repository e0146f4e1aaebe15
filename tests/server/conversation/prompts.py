"""The prompt of a chat, as the text process renders it."""

from engine.parsing.selection import formats_of
from server.chat.prompt import chat_prompt
from server.schemas.chat import ChatRequest
from server.text.tokenizer import Tokenizer


def prompt_text(tokenizer: Tokenizer, request: ChatRequest, tools: str | None = None) -> str:
    """Return the rendered chat; `tools` names the format of tool calls, None the template's."""
    return chat_prompt(tokenizer, request, formats_of(tokenizer.template, tools)).text
