"""The state of a chat in the terminal: messages, parameters, and the requests they become."""

import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import system_reason
from server.cli.remote import RemoteError
from server.cli.suggest import did_you_mean
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.checking import check_object
from server.sizes import several

SEED_BITS = 32  # of a seed that is drawn: short enough to type
PARAMETERS = (
    "frequency_penalty",
    "max_tokens",
    "min_p",
    "presence_penalty",
    "reasoning_effort",
    "repetition_penalty",
    "stop",
    "temperature",
    "thinking_budget",
    "top_k",
    "top_p",
)


@dataclass
class Conversation:
    """The messages of a chat and what is sent with them."""

    model: str
    messages: list[dict[str, str]] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None  # None: a new one for each answer

    def body(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Return the body of a request that answers `messages`. Its seed is always given."""
        seed = secrets.randbits(SEED_BITS) if self.seed is None else self.seed
        return {
            "model": self.model,
            "messages": messages,
            **self.parameters,
            "seed": seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def set_parameter(self, words: str) -> str:
        """Set a parameter, given its name and value in JSON; return what is set now.

        Without a value the parameter is removed. Raises `RemoteError` for an unknown name, and for
        a value that no server takes, with the API's own message.
        """
        name, _, value = words.partition(" ")
        if name and name not in PARAMETERS:
            known = did_you_mean(name, PARAMETERS) or f" There are: {', '.join(PARAMETERS)}."
            raise RemoteError(f"unknown parameter {name!r}.{known}")
        if value.strip():
            self.parameters[name] = _checked(name, _value(value.strip()))
        elif name:
            self.parameters.pop(name, None)
        return ", ".join(f"{key} {json.dumps(value)}" for key, value in self.parameters.items())

    def set_seed(self, word: str) -> str:
        """Set the seed of all answers, or a new one for each without a number; return a note."""
        if not word:
            self.seed = None
            return "each answer has a new seed"
        if not (word.isascii() and word.isdecimal()) or int(word) >= 2**64:
            raise RemoteError(f"{word!r} is not a seed; give a number below 2^64, or none")
        self.seed = int(word)
        return f"each answer has the seed {self.seed}"

    def last_question(self) -> list[dict[str, str]]:
        """Return the messages up to the user's last one; [] if there is none."""
        for end in range(len(self.messages), 0, -1):
            if self.messages[end - 1]["role"] == "user":
                return self.messages[:end]
        return []

    def save(self, name: str, *, replace: bool = False) -> str:
        """Write the conversation into a file, as Markdown if it ends in .md, else as JSON.

        Raises `RemoteError` for a file that cannot be written, or that exists, unless `replace`.
        """
        if not name:
            raise RemoteError("give a file, such as /save chat.md")
        if name.endswith(".md"):
            parts = [f"**{one['role']}**\n\n{one['content']}\n" for one in self.messages]
            text = "\n".join(parts)
        else:
            whole = {"model": self.model, **self.parameters, "messages": self.messages}
            text = json.dumps(whole, indent=2, ensure_ascii=False) + "\n"
        try:
            with Path(name).expanduser().open("w" if replace else "x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError as error:
            raise RemoteError(f"{name} exists; /save! {name} replaces it") from error
        except (OSError, RuntimeError) as error:  # RuntimeError: ~ of an unknown user
            raise RemoteError(f"{name}: cannot be written: {system_reason(error)}") from error
        return f"{name} has {several(len(self.messages), 'message')}"


def _checked(name: str, value: Any) -> Any:
    """Return the value of a parameter. Raises `RemoteError` if the API's schema refuses it."""
    try:
        check_object(ChatRequest, {"messages": [{"role": "user", "content": ""}], name: value})
    except ApiError as error:
        raise RemoteError(error.message) from error
    return value


def _value(text: str) -> Any:
    """Return a value that is written in JSON; other text is itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
