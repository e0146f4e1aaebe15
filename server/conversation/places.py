"""The ways in which tools are given to a chat template: not all take the argument `tools`."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from server.conversation.features import Message, Render, Tool, ToolPlace

# Like `Render`, but with further arguments of the template.
RenderWith = Callable[[Sequence[Message], Sequence[Tool] | None, Mapping[str, Any]], str]


def placed(render: RenderWith, place: ToolPlace, today: str) -> Render:
    """Return a function that renders with `render` and gives the template its tools at `place`.

    `today` is the date, as YYYY-MM-DD, for templates that take `functions`: they need it too. The
    time of day is left out, so that the prompts of a day begin alike.
    """

    def with_argument(messages: Sequence[Message], tools: Sequence[Tool] | None) -> str:
        return render(messages, tools, {})

    def with_system_field(messages: Sequence[Message], tools: Sequence[Tool] | None) -> str:
        if tools:
            has_system = bool(messages) and messages[0]["role"] == "system"
            system = messages[0] if has_system else {"role": "system", "content": ""}
            messages = [system | {"tools": _written(tools)}, *messages[has_system:]]
        return render(messages, None, {})

    def with_functions(messages: Sequence[Message], tools: Sequence[Tool] | None) -> str:
        functions = _written(tools, indent=4) if tools else ""
        return render(messages, None, {"functions": functions, "datetime": today})

    match place:
        case ToolPlace.ARGUMENT:
            return with_argument
        case ToolPlace.SYSTEM_FIELD:
            return with_system_field
        case ToolPlace.FUNCTIONS:
            return with_functions


def _written(tools: Sequence[Tool], indent: int | None = None) -> str:
    return json.dumps([tool["function"] for tool in tools], ensure_ascii=False, indent=indent)
