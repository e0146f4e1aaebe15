"""The features that conversations may have, and the record of those a chat template supports."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Message = dict[str, Any]
Tool = dict[str, Any]

# Renders messages and tools, which are None if a request has none. Raises `TemplateRefusal`.
Render = Callable[[Sequence[Message], Sequence[Tool] | None], str]


class TemplateRefusal(Exception):
    """The error raised when a chat template fails; its text is the template's or jinja's."""


class Feature(Enum):
    """A feature of conversations that not every chat template supports; values are for clients."""

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
    """The features that a chat template does not support, either with tools or without.

    Args:
        lost: the features that it leaves out of the prompt, in some positions at least.
        refused: the features on which it raises an error, in some positions at least.
        takes_text_arguments: whether arguments of calls must be JSON text instead of objects.
    """

    lost: Set[Feature] = frozenset()
    refused: Set[Feature] = frozenset()
    takes_text_arguments: bool = False

    @property
    def lacking(self) -> Set[Feature]:
        """Return the features that the template does not support, whether lost or refused."""
        return self.lost | self.refused


class ToolPlace(Enum):
    """Where a chat template takes tools."""

    ARGUMENT = "the argument `tools`, a list"
    SYSTEM_FIELD = "the field `tools` of the system message, JSON text"
    FUNCTIONS = "the argument `functions`, JSON text, beside `datetime`"


@dataclass(frozen=True)
class TemplateSupport:
    """A template's support of features without and with tools; by default, of all features."""

    without_tools: Support = field(default_factory=Support)
    with_tools: Support = field(default_factory=Support)
    tool_place: ToolPlace = ToolPlace.ARGUMENT
