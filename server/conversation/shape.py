"""A conversation rewritten without what a chat template does not take. Pure.

Every rewrite keeps the texts and their order, and looks at each message once.
"""

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any

from server.conversation.features import Feature, Message, Tool
from server.conversation.tool_instructions import tell_calls, tell_tools
from server.parsing.format import CallSyntax

SEPARATOR = "\n\n"  # between texts that are joined
FILLER = "..."  # the text of a turn that is needed and cannot be empty


def shaped(
    messages: Sequence[Message],
    tools: Sequence[Tool],
    lacking: Set[Feature],
    syntax: CallSyntax,
) -> tuple[list[Message], list[Tool] | None]:
    """Return a conversation and its tools without the features of `lacking`.

    Args:
        syntax: the form of calls that are written as text.
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
    """Return a tool whose descriptions and types are all there."""
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
    """Write names before the texts.

    The name of the assistant only where there are several: it would begin its answers with it.
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
    """Put a text beside a call into a message of its own, before that of the call."""
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
    """Give each call a message of its own, with its result after it."""
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
    """Join the system messages at the beginning."""
    first = _num_leading_systems(messages)
    return [*_joined(messages[:first], "system"), *messages[first:]]


def _with_later_systems_as_users(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Make system messages after the first turn a marked part of the next user message."""
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
        written.append(message)  # a result stays beside its call
    if waiting:
        written.append({"role": "user", "content": SEPARATOR.join(waiting)})
    return written


def _with_system_in_user(
    messages: Sequence[Message], _lacking: Set[Feature], _syntax: CallSyntax
) -> list[Message]:
    """Write the system messages at the beginning before the text of the first user."""
    first = _num_leading_systems(messages)
    if first == 0:
        return list(messages)
    last = first + (first < len(messages) and messages[first]["role"] == "user")
    return [*_joined(messages[:last], "user"), *messages[last:]]


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
    """Put an empty answer between a result and a user, or join the user's text to the result."""
    written: list[Message] = []
    run: list[Message] = []  # a result, and what is joined to it
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
    """Put a user message without a text at the beginning, if another role begins."""
    first = _num_leading_systems(messages)
    if first < len(messages) and messages[first]["role"] == "user":
        return list(messages)
    text = FILLER if Feature.EMPTY_USER in lacking else ""
    return [*messages[:first], {"role": "user", "content": text}, *messages[first:]]


def _num_leading_systems(messages: Sequence[Message]) -> int:
    others = (i for i, message in enumerate(messages) if message["role"] != "system")
    return next(others, len(messages))


def _with_joined(messages: Sequence[Message], role: str) -> list[Message]:
    """Join the neighbours of one role."""
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
    """Return one message in place of several; none in place of none."""
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


def with_arguments(messages: Sequence[Message], *, are_texts: bool) -> list[Message]:
    """Return a conversation in which the arguments of calls are objects, or texts.

    Texts stay as they were sent. One that is no JSON stays a text in any case.
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
    """Return the value of a JSON text; broken or endlessly nested JSON stays text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return {} if value is None else value


_REASONING = ("reasoning_content", "thinking")
_Rewrite = Callable[[Sequence[Message], Set[Feature], CallSyntax], list[Message]]
# In this order: a rewrite may make what a later one removes.
_REWRITES: tuple[tuple[Feature, _Rewrite], ...] = (
    (Feature.NAME, _with_names_as_text),
    (Feature.REASONING, _without_reasoning),
    (Feature.CALL, _with_calls_as_text),
    (Feature.TEXT_BESIDE_CALL, _with_text_before_calls),
    (Feature.TWO_CALLS, _with_one_call_each),
    (Feature.SECOND_SYSTEM, _with_joined_systems),
    (Feature.LATER_SYSTEM, _with_later_systems_as_users),
    (Feature.SYSTEM, _with_system_in_user),
    (Feature.USERS, _with_joined_users),
    (Feature.ASSISTANTS, _with_joined_assistants),
    (Feature.USER_AFTER_RESULT, _with_answers_after_results),
    (Feature.OTHERS_FIRST, _with_user_first),
)
