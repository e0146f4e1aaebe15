"""The tools that a request lets the model call. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from server.schemas.chat import ChatRequest
from server.schemas.tools import AllowedToolsChoice, NamedTool, Tool


@dataclass(frozen=True)
class ToolUse:
    """The calls that one answer may make.

    Args:
        tools: the tools that may be called; the prompt describes these and no others.
        is_required: whether the answer must be a call.
        is_parallel: whether the answer may have several calls.
    """

    tools: tuple[Tool, ...] = ()
    is_required: bool = False
    is_parallel: bool = True

    @property
    def is_forced(self) -> bool:
        """Return whether a grammar has to force the calls into their form."""
        is_strict = any(tool.function.strict for tool in self.tools)
        return self.is_required or not self.is_parallel or is_strict

    def schema(self, tool: Tool) -> dict[str, Any]:
        """Return the schema that the arguments of a forced call must match."""
        if not (self.is_required or tool.function.strict):
            return {"type": "object"}
        parameters = tool.function.parameters or {"additionalProperties": False}
        return {"type": "object"} | parameters

    @property
    def schemas(self) -> dict[str, Mapping[str, Any]]:
        """Return the schemas of the parameters of the tools that may be called, by tool name."""
        return {tool.function.name: tool.function.parameters or {} for tool in self.tools}


def tool_use(request: ChatRequest) -> ToolUse:
    """Return what `tools`, `tool_choice` and `parallel_tool_calls` of a request allow together."""
    tools, choice = tuple(request.tools or ()), request.tool_choice
    if not tools or choice == "none":
        return ToolUse()
    names = {tool.function.name for tool in tools}
    is_required = choice == "required"
    if isinstance(choice, NamedTool):
        names, is_required = {choice.function.name}, True
    elif isinstance(choice, AllowedToolsChoice):
        names = {tool.function.name for tool in choice.allowed_tools.tools}
        is_required = choice.allowed_tools.mode == "required"
    allowed = tuple(tool for tool in tools if tool.function.name in names)
    return ToolUse(allowed, is_required, request.parallel_tool_calls is not False)
