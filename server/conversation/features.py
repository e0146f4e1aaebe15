"""What conversations may have, and what of it a chat template takes."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]

# Renders messages; the tools are None where a request has none. Raises `TemplateRefusal`.
Render = Callable[[Sequence[Message], Sequence[Tool] | None], str]


class TemplateRefusal(Exception):
    """A chat template raised an error; the text is its own, or that of its library."""


class Feature(Enum):
    """What a conversation may have that not every chat template takes, in words for clients."""

    SYSTEM = "a system message"
    SECOND_SYSTEM = "two system messages at the beginning"
    LATER_SYSTEM = "a system message after the first turn"
    OTHERS_FIRST = "a beginning without a user message"
    USERS = "two user messages in a row"
    ASSISTANTS = "two assistant messages in a row"
    EMPTY_USER = "an empty user message"
    EMPTY_ASSISTANT = "an empty assistant message"
    NAME = "a name of a user"
    REASONING = "past reasoning"
    CALL = "a tool call and its result"
    TWO_CALLS = "two tool calls in one message"
    TEXT_BESIDE_CALL = "a text beside a tool call"
    USER_AFTER_RESULT = "a user message after a tool result"
    NO_TOOLS = "no tools"
    TOOLS = "tools"
    BARE_TOOLS = "tools without descriptions"


@dataclass(frozen=True)
class Support:
    """What a chat template takes of conversations, either with tools or without.

    Args:
        lost: what it leaves out of the prompt, at least in some places.
        refused: what it raises an error on, at least in some places.
        takes_text_arguments: whether arguments of calls have to be JSON text instead of objects.
    """

    lost: Set[Feature] = frozenset()
    refused: Set[Feature] = frozenset()
    takes_text_arguments: bool = False

    @property
    def lacking(self) -> Set[Feature]:
        """Return what the template does not take, in one way or the other."""
        return self.lost | self.refused


@dataclass(frozen=True)
class TemplateSupport:
    """What a chat template takes; the default is everything, as it comes."""

    without_tools: Support = field(default_factory=Support)
    with_tools: Support = field(default_factory=Support)
