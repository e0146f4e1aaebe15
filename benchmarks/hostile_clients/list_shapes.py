"""Hostile lists: too many messages, parts, tools, names, ids or rules."""

from benchmarks.hostile_clients.shapes import Posted, Shape

CHAT, COUNT_CHAT = "/v1/chat/completions", "/v1/chat/completions/input_tokens"
TEXT, DETOKENIZE = "/v1/completions", "/detokenize"
MESSAGES, RESPONSES = "/v1/messages", "/v1/responses"

MESSAGE = b'{"role":"user","content":"hi"},'
END_OF_MESSAGES = b'{"role":"user","content":"hi"}]}'
PART = b'{"type":"text","text":"hi"},'
END_OF_PARTS = b'{"type":"text","text":"hi"}]}]}'
OPEN_CHAT = b'{"max_tokens":1,"messages":['
OPEN_PARTS = OPEN_CHAT + b'{"role":"user","content":['
OPEN_ITEMS = b'{"max_output_tokens":16,"input":['
OPEN_PROMPT = b'{"max_tokens":1,"prompt":['
OPEN_TOKENS = b'{"tokens":['
HI = b'{"max_tokens":1,"messages":[{"role":"user","content":"hi"}],'
OPEN_TOOLS = HI + b'"tools":['
OPEN_FUNCTION = b'{"type":"function","function":{"name":"f","parameters":'
OPEN_SCHEMA = b'{"type":"object","properties":{'
PROPERTY = b'"p%d":{"type":"string","enum":["a","b"]},'
END_OF_SCHEMA = b'"z":{"type":"string"}}}'
OPEN_FORMAT = b'"response_format":{"type":"json_schema","json_schema":{"name":"f","schema":'
IDS = 199_990  # the whole body then has just below 200,000 values


def _messages() -> list[Posted]:
    name = "32 MiB of messages to"
    return [
        Posted("10,000 messages", CHAT, OPEN_CHAT, MESSAGE, END_OF_MESSAGES, 9_999),
        Posted("10,000 messages to count", COUNT_CHAT, OPEN_CHAT, MESSAGE, END_OF_MESSAGES, 9_999),
        Posted(
            "10,000 messages to render",
            "/apply-template",
            OPEN_CHAT,
            MESSAGE,
            END_OF_MESSAGES,
            9_999,
        ),
        Posted(f"{name} {CHAT}", CHAT, OPEN_CHAT, MESSAGE, END_OF_MESSAGES),
        Posted(f"{name} {MESSAGES}", MESSAGES, OPEN_CHAT, MESSAGE, END_OF_MESSAGES),
        Posted(f"{name} {RESPONSES}", RESPONSES, OPEN_ITEMS, MESSAGE, END_OF_MESSAGES),
        Posted("100,000 content parts", CHAT, OPEN_PARTS, PART, END_OF_PARTS, 99_999),
        Posted(f"100,000 parts to {MESSAGES}", MESSAGES, OPEN_PARTS, PART, END_OF_PARTS, 99_999),
        Posted("32 MiB of content parts", CHAT, OPEN_PARTS, PART, END_OF_PARTS),
    ]


def _tools() -> list[Posted]:
    function = b'{"type":"function","function":{"name":"f%d"}},'
    last_function = b'{"type":"function","function":{"name":"z"}}]}'
    open_tool = OPEN_TOOLS + OPEN_FUNCTION + OPEN_SCHEMA
    end_of_tool = END_OF_SCHEMA + b"}}]"
    return [
        Posted("5,000 tools", CHAT, OPEN_TOOLS, function, last_function, 4_999),
        Posted(
            f"5,000 tools to {MESSAGES}",
            MESSAGES,
            OPEN_TOOLS,
            b'{"name":"f%d","input_schema":{}},',
            b'{"name":"z","input_schema":{}}]}',
            4_999,
        ),
        Posted(
            f"5,000 tools to {RESPONSES}",
            RESPONSES,
            b'{"input":"hi","max_output_tokens":16,"tools":[',
            b'{"type":"function","name":"f%d"},',
            b'{"type":"function","name":"z"}]}',
            4_999,
        ),
        Posted("one tool with a schema of 32 MiB", CHAT, open_tool, PROPERTY, end_of_tool + b"}"),
        Posted(
            "a tool of 30,000 properties, required",
            CHAT,
            open_tool,
            PROPERTY,
            end_of_tool + b',"tool_choice":"required"}',
            30_000,
        ),
    ]


def _rules() -> list[Posted]:
    structured = HI + b'"structured_outputs":'
    open_format = HI + OPEN_FORMAT + OPEN_SCHEMA
    end_of_format = END_OF_SCHEMA + b"}}}"
    lark, choices = structured + b'{"grammar":"start: \\"a\\"', structured + b'{"choice":['
    return [
        Posted("a response format of 32 MiB", CHAT, open_format, PROPERTY, end_of_format),
        Posted("a format of 30,000 properties", CHAT, open_format, PROPERTY, end_of_format, 30_000),
        Posted("a regex of 32 MiB", CHAT, structured + b'{"regex":"', b"(a|b)?", b'"}}'),
        Posted("a grammar of 32 MiB", CHAT, lark, b' | \\"%d\\"', b'"}}'),
        Posted("32 MiB of choices", CHAT, choices, b'"c%d",', b'"z"]}}'),
        Posted("30,000 choices", CHAT, choices, b'"c%d",', b'"z"]}}', 30_000),
    ]


def _names_and_ids() -> list[Posted]:
    return [
        Posted("32 MiB of stop ids", CHAT, HI + b'"stop_token_ids":[', b"1,", b"1]}"),
        Posted("32 MiB of stop strings", CHAT, HI + b'"stop":[', b'"a",', b'"b"]}'),
        Posted("32 MiB of logit bias", CHAT, HI + b'"logit_bias":{', b'"%d":1,', b'"1":1}}'),
        Posted(
            "32 MiB of template arguments",
            CHAT,
            HI + b'"chat_template_kwargs":{',
            b'"k%d":1,',
            b'"z":1}}',
        ),
        Posted("32 MiB of token ids", TEXT, OPEN_PROMPT, b"1,", b"1]}"),
        Posted("200,000 token ids", TEXT, OPEN_PROMPT, b"1,", b"1]}", IDS),
        Posted("32 MiB of prompts", TEXT, OPEN_PROMPT, b'"a",', b'"b"]}'),
        Posted("32 MiB of prompts of ids", TEXT, OPEN_PROMPT, b"[1],", b"[1]]}"),
        Posted("200,000 ids to detokenize", DETOKENIZE, OPEN_TOKENS, b"1,", b"1]}", IDS),
        Posted(
            "200,000 ids to detokenize, answer not read",
            DETOKENIZE,
            OPEN_TOKENS,
            b"1,",
            b"1]}",
            IDS,
            is_read=False,
        ),
        Posted("16 million ids to detokenize", DETOKENIZE, OPEN_TOKENS, b"1,", b"1]}"),
        Posted("unknown ids to detokenize", DETOKENIZE, OPEN_TOKENS, b"9999,", b"1]}"),
    ]


LIST_SHAPES: tuple[Shape, ...] = (*_messages(), *_tools(), *_rules(), *_names_and_ids())
