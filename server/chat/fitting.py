"""The check that a chat fits the model's context, whose error says what takes the room."""

import json

from engine.errors import RequestError
from engine.messages import ModelInfo, SamplingParams
from engine.parsing.selection import Formats
from engine.process.admission import check_length
from server.chat.prompt import chat_ids, chat_prompt
from server.chat.tools import tool_use
from server.errors import ApiError, as_api_error
from server.schemas.chat import ChatRequest, TranslatedChat
from server.schemas.fields import joined_text
from server.text.tokenizer import Tokenizer

LONGEST_COUNTED = 2**18  # characters: to count the tokens of a longer text takes long
_NO_TOOLS = {"tools": None, "tool_choice": None, "functions": None, "function_call": None}


def fitting_ids(
    tokenizer: Tokenizer,
    info: ModelInfo,
    request: ChatRequest,
    text: str,
    formats: Formats,
) -> tuple[int, ...]:
    """Return the token ids of `text`, the rendered chat of `request`.

    Raises `ApiError` 400 if they leave no room for the answer in the model's context.

    Args:
        formats: the formats in which the answer is read.
    """
    is_clamped = isinstance(request, TranslatedChat) and request.clamps_limit
    limit = None if is_clamped else request.token_limit
    try:
        ids = chat_ids(tokenizer, info, text)
        check_length(len(ids), SamplingParams(max_tokens=limit), info)
    except (ApiError, RequestError) as error:
        failure = as_api_error(error)
        if failure.code != "context_length_exceeded":
            raise
        shares = _shares(tokenizer, request, text, formats)
        message = f"{failure.message} {shares}".rstrip()
        param = "messages" if failure.param == "prompt" else failure.param
        raise ApiError(message, code=failure.code, param=param) from error
    return ids


def _shares(tokenizer: Tokenizer, request: ChatRequest, text: str, formats: Formats) -> str:
    """Return a sentence on how much of a prompt are tools, system text and messages.

    It is "" if the messages are the only part, or if the template needs the tools.
    """
    is_counted = len(text) <= LONGEST_COUNTED

    def size(part: str) -> int:
        return len(tokenizer.encode(part, special=False)) if is_counted else len(part)

    whole, tools = size(text), tool_use(request).tools
    of_tools = 0
    if tools and is_counted:  # what the template writes more than without them
        try:
            bare = chat_prompt(tokenizer, request.model_copy(update=_NO_TOOLS), formats).text
        except ApiError:
            return ""
        of_tools = max(0, whole - size(bare))
    elif tools:
        of_tools = len(json.dumps([tool.described() for tool in tools], ensure_ascii=False))
    systems = [m for m in request.messages if m.role in ("system", "developer")]
    of_systems = size("".join(joined_text(message.content) for message in systems))
    parts = (
        (of_tools, _counted(len(tools), "tool")),
        (of_systems, "system text"),
        (whole - of_tools - of_systems, _counted(len(request.messages) - len(systems), "message")),
    )
    present = [(number, what) for number, what in parts if number > 0]
    if len(present) < 2:
        return ""
    units = " of these tokens" if is_counted else f" of its {whole:,} characters"
    shown = [
        f"{number:,}{'' if index else units} are the {what}"
        for index, (number, what) in enumerate(present)
    ]
    return f"{', '.join(shown[:-1])} and {shown[-1]}."


def _counted(number: int, what: str) -> str:
    return what if number == 1 else f"{number} {what}s"
