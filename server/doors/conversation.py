"""The messages of a chat, built from the items or blocks of other APIs, without any I/O."""

from collections.abc import Sequence
from typing import Any

from server.schemas.chat_messages import LeftOutPart
from server.schemas.fields import HasText, joined_text

SEPARATOR = "\n\n"  # between the texts of messages that are joined


def chat_content(content: str | Sequence[HasText | LeftOutPart]) -> str | list[dict[str, Any]]:
    """Return the content of a tool result in the form of a chat's message.

    It is one text. If a part is of a type that is left out of prompts (such as an image), it is a
    list of parts instead, so that the chat can report what it leaves out.
    """
    if isinstance(content, str) or not any(isinstance(part, LeftOutPart) for part in content):
        return joined_text(content)
    return [
        {"type": part.type}
        if isinstance(part, LeftOutPart)
        else {"type": "text", "text": part.text}
        for part in content
    ]


class ConversationBuilder:
    """A builder of a chat's messages, which joins neighbouring messages of one role.

    Many chat templates require that roles alternate, and expect the reasoning, text and calls of
    the assistant in one message.
    """

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []

    def add_text(self, role: str, text: str) -> None:
        """Add a text of the role system, developer, user or assistant."""
        message = self._message_of("system" if role == "developer" else role)
        before = message.get("content")
        message["content"] = text if before is None else before + SEPARATOR + text

    def add_reasoning(self, text: str) -> None:
        """Add reasoning of the assistant."""
        message = self._message_of("assistant")
        message["reasoning_content"] = message.get("reasoning_content", "") + text

    def add_call(self, call_id: str, name: str, arguments: str) -> None:
        """Add a call that the assistant made; `arguments` is JSON."""
        function = {"name": name, "arguments": arguments}
        calls = self._message_of("assistant").setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def add_custom_call(self, call_id: str, name: str, text: str) -> None:
        """Add a call of a custom tool that the assistant made; `text` is its input."""
        calls = self._message_of("assistant").setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "custom", "custom": {"name": name, "input": text}})

    def add_result(self, call_id: str, content: str | list[dict[str, Any]]) -> None:
        """Add the result of a call, always as a separate message."""
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": content})

    def _message_of(self, role: str) -> dict[str, Any]:
        """Return the last message if it has this role, else a new one at the end."""
        if not self._messages or self._messages[-1]["role"] != role:
            self._messages.append({"role": role})
        return self._messages[-1]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """Return the messages in the form of a chat request's body."""
        return [
            message if "tool_calls" in message else {"content": "", **message}
            for message in self._messages
        ]
