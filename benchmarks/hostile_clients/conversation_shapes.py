"""Hostile conversations and tools: many turns, large results, schemas that are hard to read."""

from benchmarks.hostile_clients.list_shapes import (
    CHAT,
    END_OF_MESSAGES,
    MESSAGES,
    OPEN_CHAT,
    OPEN_FUNCTION,
    OPEN_ITEMS,
    OPEN_TOOLS,
    RESPONSES,
)
from benchmarks.hostile_clients.shapes import Posted, Shape

CALL = (
    b'{"id":"c","type":"function","function":{"name":"f","arguments":"{\\"k\\":\\"a\\\\n%d\\"}"}}'
)
CALLING = b'{"role":"assistant","content":"t","tool_calls":[' + CALL + b"]},"
RESULT = b'{"role":"tool","tool_call_id":"c","content":"r"},'
SYSTEM = b'{"role":"system","content":"s%d"},'
USERS = b'{"role":"user","content":"hi"},{"role":"user","name":"n%d","content":"hi"},'
USING = (
    b'{"role":"assistant","content":[{"type":"tool_use","id":"c","name":"f","input":{"k":%d}}]},'
)
USED = (
    b'{"role":"user","content":[{"type":"tool_result","tool_use_id":"c","content":"r"},'
    b'{"type":"text","text":"go"}]},'
)
ITEMS = (
    b'{"type":"function_call","call_id":"c","name":"f","arguments":"{\\"k\\":%d}"},'
    b'{"type":"function_call_output","call_id":"c","output":"r"},{"role":"user","content":"hi"},'
)
WORDS = b"word \\n"
OPEN_RESULT = OPEN_CHAT + CALLING % 0 + b'{"role":"tool","tool_call_id":"c","content":"'
REQUIRED = b'}}],"tool_choice":"required"}'
OPTIONAL = b"}}]}"
TOOL = OPEN_TOOLS + OPEN_FUNCTION
NODE = b'"n%d":{"properties":{"l":{"$ref":"#/$defs/n1"},"r":{"$ref":"#/$defs/n2"}}},'
ROOT = b'"properties":{"a":{"$ref":"#/$defs/n0"}}}'


def _conversations() -> list[Posted]:
    return [
        Posted(
            "10,000 turns with a call", CHAT, OPEN_CHAT, CALLING + RESULT, END_OF_MESSAGES, 5000
        ),
        Posted("10,000 systems", CHAT, OPEN_CHAT, SYSTEM, END_OF_MESSAGES, 9999),
        Posted("10,000 users with names", CHAT, OPEN_CHAT, USERS, END_OF_MESSAGES, 5000),
        Posted(
            "10,000 messages of all roles",
            CHAT,
            OPEN_CHAT,
            SYSTEM.replace(b"%d", b"") + USERS.replace(b"%d", b"") + CALLING + RESULT,
            END_OF_MESSAGES,
            2000,
        ),
        Posted(
            f"10,000 turns to {MESSAGES}", MESSAGES, OPEN_CHAT, USING + USED, END_OF_MESSAGES, 5000
        ),
        Posted(f"10,000 items to {RESPONSES}", RESPONSES, OPEN_ITEMS, ITEMS, END_OF_MESSAGES, 3333),
        Posted("a tool result of 32 MiB", CHAT, OPEN_RESULT, WORDS, b'"}]}'),
        Posted("a tool result of 8 MB", CHAT, OPEN_RESULT, WORDS, b'"}]}', 1_200_000),
    ]


def _tools() -> list[Posted]:
    function = b'{"type":"function","function":{"name":"f%d","description":"d"}},'
    last = b'{"type":"function","function":{"name":"z"}}]'
    text = b'{"type":"string"}'
    schemas = (
        ("10,000 values", b'{"properties":{"a":{"enum":[', b'"value %d",', b'"z"]}}}', 9999),
        ("a description of 1 MB", b'{"properties":{"a":{"description":"', b"x ", b'"}}}', 500_000),
        ("500 references in a circle", b'{"$defs":{', NODE, b'"z":{"$ref":"#"}},' + ROOT, 500),
        ("2,000 branches", b'{"anyOf":[', b'{"properties":{"k%d":' + text + b"}},", b"{}]}", 2000),
        ("2,000 parts", b'{"allOf":[', b'{"properties":{"k%d":' + text + b"}},", b"{}]}", 2000),
    )
    return [
        Posted("5,000 tools, required", CHAT, OPEN_TOOLS, function, last + REQUIRED[3:], 4999),
        *(
            Posted(f"a schema of {name}, {kind}", CHAT, TOOL + start, unit, end + rest, count)
            for name, start, unit, end, count in schemas
            for kind, rest in (("optional", OPTIONAL), ("required", REQUIRED))
        ),
        Posted(
            "a schema of 20 levels of 2 copies",
            CHAT,
            TOOL + b'{"$defs":{',
            b'"n%d":{"allOf":[{"$ref":"#/$defs/n0"},{"$ref":"#/$defs/n1"}]},',
            b'"z":{}},' + ROOT + REQUIRED,
            20,
        ),
    ]


CONVERSATION_SHAPES: tuple[Shape, ...] = (*_conversations(), *_tools())
