"""The tools of the Responses API, and the names under which a chat offers them to the model.

Tools may be grouped in namespaces there. A chat has none, so equal names get their namespace as a
prefix.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from server.schemas.response_bodies import CustomTool, NamespaceTool, ResponseTool, Tool
from server.schemas.tools import HostedTool

LONGEST_NAME = 128  # characters of the longest name of a chat's tool

Own = tuple[str | None, str]
"""A tool's namespace, if it is in one, and its name there."""


class ToolNames:
    """The names under which a chat offers tools: their own, with the namespace if it is shared."""

    def __init__(self, tools: Sequence[Tool]) -> None:
        own = list(_own_names(tools))
        uses = Counter(name for _, name in dict.fromkeys(own))
        self._offered: dict[Own, str] = {}
        for namespace, name in own:
            is_shared = uses[name] > 1 and namespace is not None
            self._offered[namespace, name] = (
                f"{namespace}.{name}"[-LONGEST_NAME:] if is_shared else name
            )
        self._own = {offered: own for own, offered in self._offered.items()}

    def offered(self, namespace: str | None, name: str) -> str:
        """Return the name of a tool in the chat; an unknown tool keeps its own name."""
        return self._offered.get((namespace, name), name)

    def own(self, offered: str) -> Own:
        """Return the namespace (or None) and the own name of a tool that the chat offers."""
        return self._own.get(offered, (None, offered))


def chat_tools(tools: Sequence[Tool], names: ToolNames) -> list[dict[str, Any]]:
    """Return the tools in the form of a chat request, in the same order and nesting."""
    return [_chat_tool(tool, names) for tool in tools]


def _own_names(tools: Sequence[Tool]) -> Iterator[Own]:
    for tool in tools:
        match tool:
            case NamespaceTool():
                for inner in tool.tools:
                    if not isinstance(inner, HostedTool):
                        yield tool.name, inner.name
            case ResponseTool() | CustomTool():
                yield None, tool.name


def _chat_tool(tool: Tool, names: ToolNames, namespace: str | None = None) -> dict[str, Any]:
    match tool:
        case NamespaceTool():
            inner = [_chat_tool(one, names, tool.name) for one in tool.tools]
            return {"type": "namespace", "tools": inner}
        case HostedTool():
            return {"type": tool.type, "name": tool.name}
        case _:
            fields = tool.model_dump(exclude={"type"}, exclude_none=True)
            fields["name"] = names.offered(namespace, tool.name)
            return {"type": tool.type, tool.type: fields}
