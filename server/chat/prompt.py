"""The conversion of a request's messages or prompts to token ids, done in the text process."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from engine.messages import ModelInfo
from engine.parsing.formats import hermes
from engine.parsing.selection import FALLBACK, Formats, known_formats
from server.chat.thinking import opening_text
from server.chat.tools import tool_use
from server.conversation.features import Message, TemplateRefusal, Tool
from server.conversation.forms import render_conversation
from server.conversation.places import placed
from server.conversation.shape import without_last_thought
from server.errors import ApiError
from server.schemas.chat import ChatRequest, Prediction
from server.schemas.chat_messages import (
    AssistantMessage,
    CalledFunction,
    ChatMessage,
    FunctionMessage,
    ToolMessage,
)
from server.schemas.fields import joined_text
from server.text.tokenizer import Tokenizer

LEFT_OUT_THOUGHT = "reasoning of the last message"  # its name among what is left out


def chat_ids(tokenizer: Tokenizer, info: ModelInfo, text: str) -> tuple[int, ...]:
    """Return the token ids of a rendered chat, whose template has written all special tokens.

    Raises `ApiError` 400 for a text that cannot fit the model's context.
    """
    _refuse_endless(tokenizer, info, text, "messages")
    return tokenizer.encode(text, special=False)


@dataclass(frozen=True)
class ChatPrompt:
    """A rendered chat.

    Args:
        text: the prompt.
        before: the text that the answer continues: the prompt, or the beginning of the answer if
            the request gives one.
        left_out: what of the request is not in the prompt.
    """

    text: str
    before: str
    left_out: tuple[str, ...] = ()


def chat_prompt(tokenizer: Tokenizer, request: ChatRequest, formats: Formats) -> ChatPrompt:
    """Return a chat, rendered by the model's chat template.

    No template can leave reasoning open. Reasoning that the answer continues is written after the
    opening mark at the end of the prompt, as the model itself would have begun. An empty message
    that the answer continues is left out: the answer begins as without it, also with reasoning.

    Raises `ApiError` 400 when the template cannot render it.

    Args:
        formats: the formats in which the answer is read.
    """
    begun = request.begun_thought
    if not begun:
        generation = request.add_generation_prompt
        if generation is None or request.begins_with_nothing:
            generation = not request.is_continued
        text = _rendered(
            tokenizer,
            request,
            formats,
            request.messages[:-1] if request.begins_with_nothing else request.messages,
            generation=generation,
            continued=request.is_continued,
        )
        return ChatPrompt(text, begun_answer(request) or text)
    text = _rendered(
        tokenizer, request, formats, request.messages[:-1], generation=True, continued=False
    )
    reasoning = formats.reasoning
    thought = None if reasoning is None else reasoning.thought(text, tokenizer.template)
    if thought is None:
        return ChatPrompt(text, text, (LEFT_OUT_THOUGHT,))
    opening = opening_text(tokenizer, request, thought, text)
    opened = opening or thought.opened + text[len(text.rstrip()) :]
    return ChatPrompt(text + opening + begun, opened.lstrip() + begun)


def _rendered(
    tokenizer: Tokenizer,
    request: ChatRequest,
    formats: Formats,
    given: Sequence[ChatMessage],
    *,
    generation: bool,
    continued: bool,
) -> str:
    """Return these messages of a chat, rendered by the model's chat template.

    Args:
        generation: whether the beginning of a new answer follows them.
        continued: whether the last one is left open.
    """
    form = formats.tools

    def render(
        messages: Sequence[Message], tools: Sequence[Tool] | None, more: Mapping[str, Any]
    ) -> str:
        try:
            return rendered(messages, tools, more)
        except TemplateRefusal:
            shorter = without_last_thought(messages) if continued else messages
            if shorter == messages:
                raise
            return rendered(shorter, tools, more)  # the text to continue is what the template keeps

    def rendered(
        messages: Sequence[Message], tools: Sequence[Tool] | None, more: Mapping[str, Any]
    ) -> str:
        return tokenizer.render(
            messages,
            tools=tools,
            add_generation_prompt=generation,
            continue_final_message=continued,
            arguments={**more, **request.template_arguments},
        )

    return render_conversation(
        placed(render, tokenizer.support.tool_place, date.today().isoformat()),
        tokenizer.support,
        [template_message(message, form.call_id) for message in given],
        [tool.described() for tool in tool_use(request).tools],
        form.syntax or hermes.SYNTAX,
        is_format_known=form is not known_formats()[FALLBACK],
    )


def begun_answer(request: ChatRequest) -> str:
    """Return the beginning of the answer that the request itself gives, or ""."""
    if not request.is_continued:
        return ""
    last = request.messages[-1]
    return last.said if isinstance(last, AssistantMessage) else ""


def predicted_tokens(
    tokenizer: Tokenizer, info: ModelInfo, prediction: Prediction
) -> tuple[int, ...]:
    """Return the token ids of a predicted text, cut off at the model's context length."""
    text = joined_text(prediction.content)
    longest = info.context_length
    return tokenizer.encode(text[: longest * tokenizer.longest], special=False)[:longest]


def _refuse_endless(tokenizer: Tokenizer, info: ModelInfo, text: str, param: str) -> None:
    """Raise `ApiError` 400 for a text that cannot fit the model's context.

    The number of bytes decides, because tokenizing megabytes would take seconds.
    """
    num_tokens = len(text.encode(errors="replace")) // tokenizer.longest
    if num_tokens > info.context_length:
        raise ApiError(
            f"This model's maximum context length is {info.context_length} tokens. However, the "
            f"prompt has at least {num_tokens} tokens. Shorten the prompt.",
            code="context_length_exceeded",
            param=param,
        )


def template_message(message: ChatMessage, call_id: Callable[[str], str]) -> dict[str, Any]:
    """Return a message in the form that chat templates expect.

    `call_id` converts the id of a tool call to one that the template accepts.
    """
    role = "system" if message.role == "developer" else message.role
    content = joined_text(message.content)
    fields: dict[str, Any] = {"role": role, "content": content}
    if isinstance(message, ToolMessage):
        return fields | {"tool_call_id": call_id(message.tool_call_id)}
    if isinstance(message, FunctionMessage):  # the older API's form of a tool message
        return {"role": "tool", "tool_call_id": call_id(message.name), "content": content}
    if message.name is not None:
        fields["name"] = message.name
    if isinstance(message, AssistantMessage):
        fields["content"] = message.said
        reasoning = message.thoughts
        if reasoning is not None:
            fields["reasoning_content"] = reasoning
            fields["thinking"] = reasoning  # the name in the template of gpt-oss
        calls = [(call.id, call.function) for call in message.tool_calls or ()]
        if message.function_call is not None:
            calls.append((message.function_call.name, message.function_call))
        if calls:
            fields["tool_calls"] = [_template_call(call_id(id_), called) for id_, called in calls]
    return fields


def _template_call(call_id: str, called: CalledFunction) -> dict[str, Any]:
    function = {"name": called.name, "arguments": called.arguments}
    return {"id": call_id, "type": "function", "function": function}


def text_prompts(
    tokenizer: Tokenizer, info: ModelInfo, prompts: Sequence[str | list[int]]
) -> list[tuple[int, ...]]:
    """Return the token ids of each prompt of a completion request.

    Raises `ApiError` 400 for a prompt that cannot fit the context, for ids outside the vocabulary,
    and for an empty prompt if the model has no token to begin with.
    """
    return [_text_prompt(tokenizer, info, prompt) for prompt in prompts]


def _text_prompt(tokenizer: Tokenizer, info: ModelInfo, prompt: str | list[int]) -> tuple[int, ...]:
    if isinstance(prompt, list):
        if max(prompt) >= info.vocab_size:
            message = f"Token {max(prompt)} is outside the vocabulary of {info.vocab_size}."
            raise ApiError(message, code="invalid_value", param="prompt")
        return tuple(prompt)
    _refuse_endless(tokenizer, info, prompt, "prompt")
    ids = tokenizer.encode(prompt, special=True)
    if ids:
        return ids
    start = tokenizer.start_of_text(info.eos_token_ids)
    if start is None:
        message = "This model has no token that begins a text, so the prompt must not be empty."
        raise ApiError(message, code="invalid_value", param="prompt")
    return (start,)
