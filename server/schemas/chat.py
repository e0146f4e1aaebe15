"""The body of POST /v1/chat/completions."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from server.schemas.chat_messages import AssistantMessage, ChatMessage, LeftOutPart, ToolMessage
from server.schemas.continuing import ContinuedBody
from server.schemas.fields import (
    Body,
    Content,
    GenerationBody,
    Int,
    JsonObject,
    TokenLimit,
    field_error,
    joined_text,
    refuse_if_set,
)
from server.schemas.limits import MAX_MESSAGES, MAX_NAMES, MAX_TOOLS
from server.schemas.reasoning import Reasoning, ReasoningBody, Thinking, ThinkingSwitch
from server.schemas.structured import ResponseFormat, StructuredBody
from server.schemas.tools import (
    AllowedToolsChoice,
    CustomTool,
    Function,
    FunctionChoice,
    HostedTool,
    NamedCustomTool,
    NamedFunction,
    NamedTool,
    Tool,
    ToolChoice,
    Tools,
    walk_tools,
)


class Prediction(Body):
    """Text that the answer will mostly follow. It speeds the answer up and never changes it."""

    type: Literal["content"]
    content: Content


class ChatRequest(StructuredBody, ReasoningBody, ContinuedBody, GenerationBody):
    """The body of a request that continues a conversation."""

    messages: Annotated[
        list[ChatMessage], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    ]
    max_completion_tokens: TokenLimit = None
    max_tokens: TokenLimit = None
    logprobs: bool | None = None
    top_logprobs: Annotated[Int, Field(ge=0, le=20)] | None = None
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # reasoning, in the words of other servers
    reasoning: Reasoning | None = None
    thinking: ThinkingSwitch | None = None
    prediction: Prediction | None = None
    # extensions: how the template is rendered
    chat_template_kwargs: JsonObject | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    # what tools and tool_choice were before
    functions: Annotated[list[Function], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    function_call: FunctionChoice | None = None
    # known to OpenAI's clients, refused when set
    modalities: Annotated[list[str], Field(max_length=MAX_NAMES)] | None = None
    audio: JsonObject | None = None
    # texts beside the messages, which templates of some servers show to the model
    documents: Annotated[list[Any], Field(max_length=MAX_NAMES)] | None = None
    # a search that only a provider runs; left out
    web_search_options: JsonObject | None = None

    @model_validator(mode="after")
    def _check_fields_agree(self) -> Self:
        formed = self.response_format is not None and self.response_format.type != "text"
        if formed and self.form is not None:
            field = self.form[0].partition(".")[0]
            raise field_error(field, f"Give 'response_format' or '{field}', not both")
        if self.top_logprobs and not self.logprobs:
            raise field_error("top_logprobs", "'top_logprobs' needs 'logprobs': true")
        return self

    @model_validator(mode="after")
    def _check_continued_message(self) -> Self:
        if not self.continue_final_message:
            return self
        if self.add_generation_prompt:
            message = "Give 'continue_final_message' or 'add_generation_prompt', not both"
            raise field_error("add_generation_prompt", message)
        last = self.messages[-1]
        if last.role != "assistant":
            message = "'continue_final_message' needs a last message of role assistant"
            raise field_error("continue_final_message", message)
        return self

    @model_validator(mode="after")
    def _check_tool_choice(self) -> Self:
        choice = self.tool_choice
        if choice in ("none", "auto"):
            choice = None
        known = {tool.function.name for _, tool in self.offered}
        called = self.function_call
        if isinstance(called, NamedFunction) and called.name not in known:
            raise field_error("function_call.name", f"No function has the name '{called.name}'")
        if choice is not None and not known:
            what = "has none that this server can offer" if self.tools else "is missing"
            raise field_error("tool_choice", f"'tool_choice' asks for a call, but 'tools' {what}")
        chosen: list[tuple[str, NamedTool | NamedCustomTool]] = []
        if isinstance(choice, NamedTool | NamedCustomTool):
            chosen.append(("tool_choice", choice))
        elif isinstance(choice, AllowedToolsChoice):
            path = "tool_choice.allowed_tools.tools"
            chosen += [(f"{path}.{i}", tool) for i, tool in enumerate(choice.allowed_tools.tools)]
        for path, tool in chosen:
            if tool.name not in known:
                raise field_error(f"{path}.{tool.type}.name", f"No tool has the name '{tool.name}'")
        return self

    @model_validator(mode="after")
    def _check_tool_results(self) -> Self:
        called: set[str] = set()
        for i, message in enumerate(self.messages):
            if isinstance(message, AssistantMessage):
                called.update(call.id for call in message.tool_calls or ())
            elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
                text = "A tool message must answer a call in an assistant message before it"
                raise field_error(f"messages.{i}.tool_call_id", text)
        return self

    @model_validator(mode="after")
    def _refuse_unsupported(self) -> Self:
        refuse_if_set("audio", self.audio)
        refuse_if_set("documents", self.documents)
        if self.modalities not in (None, [], ["text"]):
            refuse_if_set("modalities", self.modalities)
        return self

    @property
    def is_continued(self) -> bool:
        """Return whether the answer continues the last message, which is the assistant's.

        That is so unless a flag says otherwise: chat pages continue answers in this way.
        """
        last = self.messages[-1]
        if not isinstance(last, AssistantMessage) or self.begins_with_nothing:
            return False
        if self.continue_final_message is not None:
            return self.continue_final_message
        is_text = bool(joined_text(last.content) or last.thoughts)
        return is_text and not (self.add_generation_prompt or last.tool_calls or last.function_call)

    @property
    def begins_with_nothing(self) -> bool:
        """Return whether the answer would continue a last message that is empty.

        It is then the answer to the messages before it, as llama.cpp understands it too.
        """
        last = self.messages[-1]
        is_empty = isinstance(last, AssistantMessage) and not (
            last.said or last.thoughts or last.tool_calls or last.function_call
        )
        is_closed = self.add_generation_prompt or self.continue_final_message is False
        return is_empty and not is_closed and len(self.messages) > 1

    @property
    def begun_thought(self) -> str:
        """Return the reasoning that the answer continues; "" if the message has more than that."""
        last = self.messages[-1]
        if not (self.is_continued and isinstance(last, AssistantMessage)):
            return ""
        has_more = last.said or last.tool_calls or last.function_call
        return "" if has_more else last.thoughts or ""

    @property
    def offered(self) -> list[tuple[str, Tool]]:
        """Return the functions that the model may be offered, with their paths in the body."""
        offered = [
            (f"{path}.{tool.type}", tool.as_function() if isinstance(tool, CustomTool) else tool)
            for path, tool in walk_tools(self.tools or ())
            if not isinstance(tool, HostedTool)
        ]
        for index, function in enumerate(self.functions or ()):
            offered.append((f"functions.{index}", Tool(type="function", function=function)))
        return offered

    @property
    def has_old_calls(self) -> bool:
        """Return whether the answer has a `function_call` instead of `tool_calls`."""
        return bool(self.functions) and not self.tools

    @property
    def choice(self) -> ToolChoice | None:
        """Return which tools may or must be called, in today's form."""
        if self.tool_choice is not None or self.function_call is None:
            return self.tool_choice
        if isinstance(self.function_call, NamedFunction):
            return NamedTool(type="function", function=self.function_call)
        return self.function_call

    @property
    def custom_names(self) -> frozenset[str]:
        """Return the names of the tools that take a text instead of arguments."""
        tools = walk_tools(self.tools or ())
        return frozenset(tool.custom.name for _, tool in tools if isinstance(tool, CustomTool))

    @property
    def left_out(self) -> list[str]:
        """Return what of the request the model is not given, by place and name."""
        found: list[str] = []
        for path, tool in walk_tools(self.tools or ()):
            place = re.sub(r"\.(\d+)", r"[\1]", path)
            if isinstance(tool, HostedTool):
                found.append(f"{place} {tool.type}")
            elif isinstance(tool, CustomTool) and tool.custom.syntax is not None:
                found.append(f"{place}.format")
        if self.web_search_options is not None:
            found.append("web_search_options")
        for message in self.messages:
            if isinstance(message, ToolMessage) and isinstance(message.content, list):
                kinds = [part.type for part in message.content if isinstance(part, LeftOutPart)]
                found += [f"{kind} in a tool result" for kind in kinds]
        return found

    @property
    def template_arguments(self) -> dict[str, Any]:
        """Return the arguments with which the chat template is rendered."""
        return self.reasoning_switches | (self.chat_template_kwargs or {})

    @property
    def reasoning_switches(self) -> dict[str, Any]:
        """Return the arguments by which templates set reasoning; each family has its own switch."""
        nested = None if self.reasoning is None else self.reasoning.effort
        effort = self.reasoning_effort or nested
        thinks = self._thinks if effort is None else effort != "none"
        budget = self.thinking_limit
        if budget == 0:
            thinks = False
        elif thinks is False:
            budget = 0  # the switch of Seed-OSS, whose template tells the model its budget
        switches: dict[str, Any] = {}
        if thinks is not None:
            switches |= {"enable_thinking": thinks, "thinking": thinks}
        if effort is not None:
            switches["reasoning_effort"] = effort
        if budget is not None:
            switches["thinking_budget"] = budget
        return switches

    @property
    def _thinks(self) -> bool | None:
        """Return whether the model should think, where a request says it without an effort.

        A budget alone asks for reasoning, and so does reasoning that the answer continues.
        """
        switch = self.thinking
        if isinstance(switch, Thinking):
            switch = None if switch.type == "adaptive" else switch.type == "enabled"
        enabled = None if self.reasoning is None else self.reasoning.enabled
        by_itself = True if self.thinking_limit is not None or self.begun_thought else None
        given = (switch, self.enable_thinking, enabled, by_itself)
        return next((value for value in given if value is not None), None)

    @property
    def thinking_limit(self) -> int | None:
        """The most tokens of reasoning, the smallest if several are given; None for no limit."""
        nested = None if self.reasoning is None else self.reasoning.max_tokens
        switch = self.thinking
        return self.smallest_budget(
            nested, switch.budget_tokens if isinstance(switch, Thinking) else None
        )

    @property
    def token_limit(self) -> int | None:
        """The largest number of tokens to emit; None for no limit but the context."""
        return self.max_completion_tokens or self.max_tokens


class TranslatedChat(ChatRequest):
    """A chat that was made of a body of another API.

    Args:
        skipped: what of that body has no place in a chat.
        clamps_limit: whether a token limit above what is left of the context means all of that.
    """

    skipped: list[str] = Field(default_factory=list)
    clamps_limit: bool = False

    @property
    def left_out(self) -> list[str]:
        return [*super().left_out, *self.skipped]
