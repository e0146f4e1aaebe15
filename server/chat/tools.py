"""What a request lets the model call. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.schemas.chat import ChatRequest
from server.schemas.tools import AllowedToolsChoice, NamedTool, Tool


@dataclass(frozen=True)
class ToolUse:
    """The tools that may be called in one answer: the model is told of these and no others."""

    tools: tuple[Tool, ...] = ()
    required: bool = False  # the answer is a call
    parallel: bool = True  # it may be several

    @property
    def is_forced(self) -> bool:
        """Whether a grammar must see to it."""
        return self.required or not self.parallel or any(t.function.strict for t in self.tools)

    def schema(self, tool: Tool) -> dict[str, Any]:
        """What the arguments of a call must match where calls are forced."""
        if not (self.required or tool.function.strict):
            return {"type": "object"}
        parameters = tool.function.parameters or {"additionalProperties": False}
        return {"type": "object"} | parameters

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """The schemas of the tools' parameters, by name: a parser of the answer needs them."""
        return {tool.function.name: tool.function.parameters or {} for tool in self.tools}


def tool_use(request: ChatRequest) -> ToolUse:
    """What `tools`, `tool_choice` and `parallel_tool_calls` come to."""
    tools, choice = tuple(request.tools or ()), request.tool_choice
    if not tools or choice == "none":
        return ToolUse()
    names = {tool.function.name for tool in tools}
    required = choice == "required"
    if isinstance(choice, NamedTool):
        names, required = {choice.function.name}, True
    elif isinstance(choice, AllowedToolsChoice):
        names = {tool.function.name for tool in choice.allowed_tools.tools}
        required = choice.allowed_tools.mode == "required"
    allowed = tuple(tool for tool in tools if tool.function.name in names)
    return ToolUse(allowed, required, request.parallel_tool_calls is not False)
