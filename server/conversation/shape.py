"""Rewrites of a conversation that remove features which a chat template does not support.

Every rewrite keeps the texts and their order, and takes time linear in the number of messages. The
functions are pure.
"""

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from engine.parsing.format import CallSyntax
from server.conversation.features import Feature, Message, Tool
from server.conversation.presence import END_OF_THOUGHT
from server.conversation.tool_instructions import tell_calls, tell_tools

SEPARATOR = "\n\n"  # between the texts of joined messages
BEGIN_OF_THOUGHT = "<think>"
FILLER = "..."  # the text of an added message for templates that refuse an empty one


def shaped(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    lacking: Set[Feature],
    syntax: CallSyntax,
) -> tuple[list[Message], list[Tool] | None]:
    """Return a conversation and its tools, rewritten without the features of `lacking`.

    The tools are None if the template must get none, and an empty list if it refuses None.

    Args:
        syntax: the format of calls that are written as text.
    """
    shaped_tools: list[Tool] | None = list(tools) or ([] if Feature.NO_TOOLS in lacking else None)
    if Feature.TOOLS in lacking and tools:
        messages = tell_tools(messages, tools, syntax)
        shaped_tools = [] if Feature.NO_TOOLS in lacking else None
    elif Feature.BARE_TOOLS in lacking and tools:
        shaped_tools = [_described(tool) for tool in tools]
    for feature, rewrite in _REWRITES:
        if feature in lacking:
            messages = rewrite(messages, lacking, syntax)
    return list(messages), shaped_tools


# -- tools


def _described(tool: Tool) -> Tool:
    """Return a tool in which missing descriptions, types and parameters are added."""
    function = {"description": ""} | tool["function"]
    parameters = {"type": "object", "properties": {}, "required": []} | function["parameters"]
    return tool | {"function": function | {"parameters": _with_described_properties(parameters)}}


def _with_described_properties(schema: Mapping[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return dict(schema)
    described = {}
    for name, value in properties.items():
        known = value if isinstance(value, dict) else {}  # `true` is a schema too
        described[name] = _with_described_properties(
            {"type": "object" if "properties" in known else "string", "description": ""} | known
        )
    return {**schema, "properties": described}


# -- messages


def _with_names_as_text(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Write the names of messages at the beginning of their texts.

    An assistant's name is written only if there are several assistants; a single one would begin
    its own answers with its name.
    """
    assistants = {message.get("name") for message in messages if message["role"] == "assistant"}
    return [
        _with_name_as_text(
            message, is_written=message["role"] != "assistant" or len(assistants) > 1
        )
        if "name" in message and message["role"] != "tool"
        else message
        for message in messages
    ]


def _with_name_as_text(message: Message, *, is_written: bool) -> Message:
    others = {key: value for key, value in message.items() if key != "name"}
    if is_written and message["name"] != message["role"]:
        others["content"] = f"{message['name']}: {message['content'] or ''}"
    return others


def _without_reasoning(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    return [
        {key: value for key, value in message.items() if key not in _REASONING}
        for message in messages
    ]


def _with_calls_as_text(
    messages: Sequence[Message], _lacking: Set[Feature], syntax: CallSyntax
) -> list[Message]:
    return tell_calls(messages, syntax)


def _with_text_before_calls(
    messages: Sequence[Message], lacking: Set[Feature], syntax: CallSyntax
) -> list[Message]:
    """Move the text of a message with calls to a separate message before it.

    If two assistant messages in a row are not supported, write the calls as text instead.
    """
    if not any("tool_calls" in message and message["content"] for message in messages):
        return list(messages)
    if Feature.ASSISTANTS in lacking:
        return tell_calls(messages, syntax)
    split: list[Message] = []
    for message in messages:
        if "tool_calls" in message and message["content"]:
            split.append({"role": "assistant", "content": message["content"]})
            message = message | {"content": ""}
        split.append(message)
    return split


def _with_one_call_each(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Give each call a separate message, followed by the message with its result."""
    split: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        calls = message.get("tool_calls", ())
        if len(calls) < 2:
            split.append(message)
            continue
        results: dict[str, deque[Message]] = defaultdict(deque)
        while place < len(messages) and messages[place]["role"] == "tool":
            results[messages[place]["tool_call_id"]].append(messages[place])
            place += 1
        for call in calls:
            split.append(message | {"tool_calls": [call]})
            if results[call["id"]]:
                split.append(results[call["id"]].popleft())
            message = {"role": "assistant", "content": ""}
        split += (result for rest in results.values() for result in rest)
    return split


def _with_joined_systems(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Join the system messages at the beginning to one message."""
    first = _num_leading_systems(messages)
    return [*_joined(messages[:first], "system"), *messages[first:]]


def _with_later_systems_as_users(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Move the text of later system messages into the next user message, between `<system>` tags.

    If an assistant message or the end comes first, the text becomes a user message of its own.
    """
    first = _num_leading_systems(messages)
    written = list(messages[:first])
    waiting: list[str] = []
    for message in messages[first:]:
        if message["role"] == "system":
            waiting.append(f"<system>\n{message['content'] or ''}\n</system>")
            continue
        if waiting and message["role"] == "user":
            text = SEPARATOR.join(filter(None, [*waiting, message["content"]]))
            message, waiting = message | {"content": text}, []
        elif waiting and message["role"] == "assistant":
            written.append({"role": "user", "content": SEPARATOR.join(waiting)})
            waiting = []
        written.append(message)  # nothing is put between a tool result and its call
    if waiting:
        written.append({"role": "user", "content": SEPARATOR.join(waiting)})
    return written


def _with_system_in_user(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Join the system messages at the beginning to the first user message, or to a new one."""
    first = _num_leading_systems(messages)
    if first == 0:
        return list(messages)
    last = first + (first < len(messages) and messages[first]["role"] == "user")
    return [*_joined(messages[:last], "user"), *messages[last:]]


def _without_empty_assistants(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Leave out assistant messages without text and calls, except for a last one."""
    return [
        message
        for message in messages[:-1]
        if message["role"] != "assistant" or message["content"] or "tool_calls" in message
    ] + [*messages[-1:]]


def _with_joined_users(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    return _with_joined(messages, "user")


def _with_joined_assistants(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    return _with_joined(messages, "assistant")


def _with_answers_after_results(
    messages: Sequence[Message], lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Separate a tool result from a user message that follows it, by an empty assistant message.

    If empty assistant messages are not supported, join the user's text to the result instead.
    """
    written: list[Message] = []
    run: list[Message] = []  # a tool result, and the user messages to join to it
    for message in messages:
        if message["role"] == "user" and run:
            if Feature.EMPTY_ASSISTANT in lacking:
                run.append(message)
                continue
            message_between = [{"role": "assistant", "content": ""}]
        else:
            message_between = []
        written += [*_joined(run, "tool"), *message_between]
        run = [message] if message["role"] == "tool" else []
        written += [message] if not run else []
    return [*written, *_joined(run, "tool")]


def _with_user_first(
    messages: Sequence[Message], lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Insert a user message after the leading system messages if another role comes there."""
    first = _num_leading_systems(messages)
    if first < len(messages) and messages[first]["role"] == "user":
        return list(messages)
    text = FILLER if Feature.EMPTY_USER in lacking else ""
    return [*messages[:first], {"role": "user", "content": text}, *messages[first:]]


def _num_leading_systems(messages: Sequence[Message]) -> int:
    others = (i for i, message in enumerate(messages) if message["role"] != "system")
    return next(others, len(messages))


def _with_joined(messages: Sequence[Message], role: str) -> list[Message]:
    """Join neighbouring messages of the role `role` to one message."""
    written: list[Message] = []
    run: list[Message] = []
    for message in messages:
        if message["role"] == role:
            run.append(message)
            continue
        written += _joined(run, role)
        run = []
        written.append(message)
    return [*written, *_joined(run, role)]


def _joined(messages: Sequence[Message], role: str) -> list[Message]:
    """Return the messages joined to one with the role `role`, in a list; [] for no messages."""
    if len(messages) < 2:
        return [message | {"role": role} for message in messages]
    joined: Message = {}
    for message in messages:
        joined |= message
    joined |= {"role": role, "content": SEPARATOR.join(_present(messages, "content"))}
    for field in _REASONING:
        if texts := _present(messages, field):
            joined[field] = SEPARATOR.join(texts)
    if calls := [call for message in messages for call in message.get("tool_calls", ())]:
        joined["tool_calls"] = calls
    return [joined]


def _present(messages: Iterable[Message], field: str) -> list[str]:
    return [message[field] for message in messages if message.get(field)]


def without_last_thought(messages: Sequence[Message]) -> list[Message]:
    """Return a conversation with the thought in the last message's content as its reasoning.

    The thought is what ends with `END_OF_THOUGHT`. A content that is nothing else stays as it is.
    """
    *others, last = messages
    thought, _, text = (last["content"] or "").rpartition(END_OF_THOUGHT)
    if not thought or not text.strip():
        return list(messages)
    reasoning = thought.rpartition(BEGIN_OF_THOUGHT)[2].strip()
    return [*others, last | dict.fromkeys(_REASONING, reasoning) | {"content": text.lstrip()}]


def with_arguments(messages: Sequence[Message], *, are_texts: bool) -> list[Message]:
    """Return a conversation in which the arguments of calls are objects, or JSON texts.

    With `are_texts`, the texts stay as they were sent. Otherwise they are parsed, except for those
    that are not valid JSON.
    """
    return [
        message
        if "tool_calls" not in message
        else message
        | {"tool_calls": [_with_arguments(call, are_texts) for call in message["tool_calls"]]}
        for message in messages
    ]


def _with_arguments(call: Mapping[str, Any], are_texts: bool) -> dict[str, Any]:
    text = call["function"]["arguments"].strip() or "{}"
    arguments = text if are_texts else _parsed(text)
    return {**call, "function": call["function"] | {"arguments": arguments}}


def _parsed(text: str) -> Any:
    """Return the value of a JSON text, {} for null, or the text itself if it is not valid JSON."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return {} if value is None else value


_REASONING = ("reasoning_content", "thinking")
_Rewrite = Callable[[Sequence[Message], Set[Feature], CallSyntax], list[Message]]
# The order matters: a rewrite may create what a later one removes.
_REWRITES: tuple[tuple[Feature, _Rewrite], ...] = (
    (Feature.NAME, _with_names_as_text),
    (Feature.REASONING, _without_reasoning),
    (Feature.CALL, _with_calls_as_text),
    (Feature.TEXT_BESIDE_CALL, _with_text_before_calls),
    (Feature.TWO_CALLS, _with_one_call_each),
    (Feature.SECOND_SYSTEM, _with_joined_systems),
    (Feature.LATER_SYSTEM, _with_later_systems_as_users),
    (Feature.SYSTEM, _with_system_in_user),
    (Feature.EMPTY_ASSISTANT, _without_empty_assistants),
    (Feature.USERS, _with_joined_users),
    (Feature.ASSISTANTS, _with_joined_assistants),
    (Feature.USER_AFTER_RESULT, _with_answers_after_results),
    (Feature.OTHERS_FIRST, _with_user_first),
)
