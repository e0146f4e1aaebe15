"""The messages of a chat, put together from the pieces that other APIs have. Pure."""

from typing import Any

BETWEEN = "\n\n"  # messages of one role that become one


class Turns:
    """Collects messages. Neighbours of one role become one: many templates want roles to alternate,
    and what an assistant thought, said and called is one message to them."""

    def __init__(self) -> None:
        self._messages: list[dict[str, Any]] = []

    def say(self, role: str, text: str) -> None:
        """A text of a system, developer, user or assistant."""
        message = self._open("system" if role == "developer" else role)
        before = message.get("content")
        message["content"] = text if before is None else before + BETWEEN + text

    def think(self, text: str) -> None:
        """What the assistant thought before it went on."""
        message = self._open("assistant")
        message["reasoning_content"] = message.get("reasoning_content", "") + text

    def call(self, call_id: str, name: str, arguments: str) -> None:
        """A call the assistant made; `arguments` is JSON."""
        function = {"name": name, "arguments": arguments}
        calls = self._open("assistant").setdefault("tool_calls", [])
        calls.append({"id": call_id, "type": "function", "function": function})

    def result(self, call_id: str, text: str) -> None:
        """What a call gave."""
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def _open(self, role: str) -> dict[str, Any]:
        if not self._messages or self._messages[-1]["role"] != role:
            self._messages.append({"role": role})
        return self._messages[-1]

    @property
    def messages(self) -> list[dict[str, Any]]:
        """As the body of a chat has them."""
        return [
            message if "tool_calls" in message else {"content": "", **message}
            for message in self._messages
        ]
