"""Tests of conversations that a chat template does not take as they are."""

import json
from typing import Any

import pytest

from server.conversation.features import Feature, TemplateSupport
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.checking import check_object
from tests.server.conversation.prompts import prompt_text
from tests.server.fake_engine import load_fake_tokenizer

# A template that takes everything, from which most others are made.
SAID = "<{{ m.role }}>{{ m.name ~ '|' if m.name else '' }}{{ m.content }}"
ARGUMENTS = "c.function.arguments | tojson"
CALLED = f"{{% for c in m.tool_calls or [] %}}[{{{{ c.function.name }}}} {{{{ {ARGUMENTS} }}}}]"
TAKES_ALL = (
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}{% for m in messages %}HERE"
    f"{SAID}{CALLED}{{% endfor %}}{{% endfor %}}{{# calls are read as <tool_call> #}}"
)


def template(here: str = "", **changes: str) -> str:
    """Return the template with `here` before each message, and with parts of it changed."""
    text = TAKES_ALL.replace("HERE", here)
    for old, new in changes.items():
        text = text.replace({"said": SAID, "called": CALLED}[old], new)
    return text


def refuses(condition: str) -> str:
    return template(f"{{% if {condition} %}}{{{{ raise_exception('Secret.') }}}}{{% endif %}}")


def said_if(condition: str) -> str:
    return f"{{% if {condition} %}}{SAID}{{% endif %}}"


FIRST_ROLE = "messages[0].role"
ALTERNATES = refuses(
    "not loop.first and m.role == loop.previtem.role or m.role == 'tool' or m.tool_calls"
)


def user(text: str, **fields: str) -> dict[str, Any]:
    return {"role": "user", "content": text, **fields}


def assistant(text: str | None, *arguments: str, **fields: str) -> dict[str, Any]:
    """Return an answer with calls of `look_up`, which have these arguments."""
    message: dict[str, Any] = {"role": "assistant", "content": text, **fields}
    if arguments:
        message["tool_calls"] = [
            {"id": f"call{i}", "type": "function", "function": {"name": "look_up", "arguments": a}}
            for i, a in enumerate(arguments)
        ]
    return message


def result(text: str, call: int = 0) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"call{call}", "content": text}


S, D = {"role": "system", "content": "s1"}, {"role": "developer", "content": "s2"}
U, A = user("hi"), assistant("yes")
CALL, R = assistant(None, '{"k": "v"}'), result("got")
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}
NO_CALLS = template(called="{% for c in [] %}")
ONLY_FIRST_SYSTEM = template(said=said_if("m.role != 'system' or loop.first"))
CALL_TEXT = '<tool_call>\n{"name": "look_up", "arguments": {"k": "v"}}\n</tool_call>'
RESULT_TEXT = "<tool_response>\ngot\n</tool_response>"
TOLD = (
    'You may call these functions:\n{"name": "look_up", "parameters": {"type": "object"}}\n\n'
    "To call one, answer with its name and its arguments as a JSON object:\n"
    '<tool_call>\n{"name": "NAME", "arguments": {...}}\n</tool_call>'
)

# what the template is like, the template, the messages, the prompt
CASES: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "no system": (
        refuses("m.role == 'system'"),
        [S, D, U, A, S, U],
        "<user>s1\n\ns2\n\nhi<assistant>yes<user><system>\ns1\n</system>\n\nhi",
    ),
    "no system, and no user": (refuses("m.role == 'system'"), [S], "<user>s1"),
    "one system": (
        refuses("m.role == 'system' and not loop.first"),
        [S, D, U],
        "<system>s1\n\ns2<user>hi",
    ),
    "system in the middle is refused": (
        refuses("m.role == 'system' and not loop.first"),
        [S, U, CALL, D, R, A, D],
        '<system>s1<user>hi<assistant>[look_up {"k": "v"}]<tool>got<user><system>\ns2\n</system>'
        "<assistant>yes<user><system>\ns2\n</system>",
    ),
    "system in the middle is lost": (
        ONLY_FIRST_SYSTEM,
        [U, {"role": "system", "content": "s"}, U],  # a text that every prompt has
        "<user>hi<user><system>\ns\n</system>\n\nhi",
    ),
    "users in a row": (
        refuses("m.role == 'user' and not loop.first and loop.previtem.role == 'user'"),
        [S, U, user("there"), A, U],
        "<system>s1<user>hi\n\nthere<assistant>yes<user>hi",
    ),
    "assistants in a row": (
        refuses("m.role == 'assistant' and not loop.first and loop.previtem.role == m.role"),
        [U, A, CALL, R],
        '<user>hi<assistant>yes[look_up {"k": "v"}]<tool>got',
    ),
    "a user after a result": (
        refuses("m.role == 'user' and not loop.first and loop.previtem.role == 'tool'"),
        [U, CALL, R, U],
        '<user>hi<assistant>[look_up {"k": "v"}]<tool>got<assistant><user>hi',
    ),
    "a user after a result, and no empty answers": (
        refuses(
            "m.role == 'user' and not loop.first and loop.previtem.role == 'tool'"
            " or m.role == 'assistant' and not m.content and not m.tool_calls"
        ),
        [U, CALL, R, U, A],
        '<user>hi<assistant>[look_up {"k": "v"}]<tool>got\n\nhi<assistant>yes',
    ),
    "empty answers": (
        refuses(
            "m.role == 'assistant' and not m.content and not m.tool_calls"
            " or m.role == 'user' and not loop.first and loop.previtem.role == 'user'"
        ),
        [U, assistant(""), user("there"), A, assistant(None), CALL, R],
        '<user>hi\n\nthere<assistant>yes<assistant>[look_up {"k": "v"}]<tool>got',
    ),
    "a user first": (
        refuses(f"{FIRST_ROLE} == 'assistant'"),
        [A, U],
        "<user><assistant>yes<user>hi",
    ),
    "two calls are refused": (
        refuses("m.tool_calls and m.tool_calls | length > 1"),
        [U, assistant(None, '{"k": "a"}', '{"k": "b"}'), result("rb", 1), result("ra", 0)],
        '<user>hi<assistant>[look_up {"k": "a"}]<tool>ra<assistant>[look_up {"k": "b"}]<tool>rb',
    ),
    "the second call is lost": (
        template(called=CALLED.replace("m.tool_calls or []", "(m.tool_calls or [])[:1]")),
        [U, assistant(None, "{}", "{}"), result("ra"), result("rb", 1)],
        "<user>hi<assistant>[look_up {}]<tool>ra<assistant>[look_up {}]<tool>rb",
    ),
    "content beside reasoning and a call": (
        refuses("m.tool_calls and m.content and m.thinking"),
        [U, assistant("Well.", '{"k": "v"}', reasoning_content="Hm."), R],
        '<user>hi<assistant>Well.<assistant>[look_up {"k": "v"}]<tool>got',
    ),
    "content beside a call is lost": (
        template(said=SAID.replace("m.content", "m.content if not m.tool_calls else ''")),
        [U, assistant("Well.", '{"k": "v"}'), R],
        '<user>hi<assistant>Well.<assistant>[look_up {"k": "v"}]<tool>got',
    ),
    "no calls": (NO_CALLS, [U, CALL, R], f"<user>hi<assistant>{CALL_TEXT}<user>{RESULT_TEXT}"),
    "alternating users and assistants": (
        ALTERNATES,
        [D, U, U, CALL, R, U],
        f"<system>s2<user>hi\n\nhi<assistant>{CALL_TEXT}<user>{RESULT_TEXT}\n\nhi",
    ),
    "arguments as text": (
        template(called=CALLED.replace(ARGUMENTS, "'' + c.function.arguments")),
        [U, assistant(None, '{"k":  "v"}'), R],
        '<user>hi<assistant>[look_up {"k":  "v"}]<tool>got',
    ),
    "arguments that are printed as Python writes them": (
        template(called=CALLED.replace(ARGUMENTS, "c.function.arguments")),
        [U, CALL, R],
        '<user>hi<assistant>[look_up {"k": "v"}]<tool>got',
    ),
    "arguments that are broken": (
        template(called=CALLED.replace(ARGUMENTS, "c.function.arguments.items() | list")),
        [U, assistant(None, '{"k'), R],
        '<user>hi<assistant><tool_call>\n{"name": "look_up", "arguments": {"k}\n</tool_call>'
        f"<user>{RESULT_TEXT}",
    ),
    "no arguments": (
        TAKES_ALL.replace("HERE", ""),
        [U, assistant(None, " "), R],
        "<user>hi<assistant>[look_up {}]<tool>got",
    ),
    "names are lost": (
        template(said=SAID.replace("m.name", "none")),
        [user("hi", name="Ann"), assistant("yes", name="bot"), user("ho", name="user")],
        "<user>Ann: hi<assistant>yes<user>ho",
    ),
    "past reasoning is refused": (
        refuses("m.thinking"),
        [U, assistant("yes", reasoning="Hm."), U],
        "<user>hi<assistant>yes<user>hi",
    ),
    "a system only with a last user": (
        template(said=said_if("m.role != 'system' or messages[-1].role == 'user'")),
        [S, U, CALL, R],
        '<user>s1\n\nhi<assistant>[look_up {"k": "v"}]<tool>got',
    ),
    "tools are always there": (
        template("{{ tools | length if loop.first }}"),
        [U, A],
        "0<user>hi<assistant>yes",
    ),
}


def rendered(chat_template: str, **body: Any) -> str:
    tokenizer = load_fake_tokenizer("fake", chat_template)
    return prompt_text(tokenizer, check_object(ChatRequest, body))


@pytest.mark.parametrize("name", CASES)
def test_a_conversation_gets_the_shape_that_its_template_takes(name: str) -> None:
    chat_template, messages, prompt = CASES[name]
    assert rendered(chat_template, messages=messages) == prompt


@pytest.mark.parametrize(
    ("description", "schema"),
    [(None, {"type": "object"}), ("d", {"properties": {"a": {}, "b": True}})],
)
def test_missing_descriptions_are_empty_where_a_template_needs_them(
    description: str | None, schema: dict[str, Any]
) -> None:
    chat_template = template(
        "{% for t in tools or [] if loop.first %}{{ t.function.name + t.function.description }}:"
        "{% for k, v in t.function.parameters.properties.items() %}"
        "{{ k + '=' + v.type + v.description }};{% endfor %}{% endfor %}"
    ).removeprefix("{% for t in tools or [] %}{{ t | tojson }}{% endfor %}")
    function = {"name": "look_up", "description": description, "parameters": schema}
    tools = [{"type": "function", "function": function}]
    shown = "a=string;b=string;" if "properties" in schema else ""
    prompt = rendered(chat_template, messages=[U], tools=tools)
    assert prompt == f"look_up{description or ''}:{shown}<user>hi"


@pytest.mark.parametrize(
    ("chat_template", "prompt"),
    [
        (template(), f"{json.dumps(TOOL)}<user>hi"),
        (TAKES_ALL.replace("HERE", "").partition("{% endfor %}")[2], f"<system>{TOLD}<user>hi"),
        (refuses("m.role == 'system' or tools"), f"<user>{TOLD}\n\nhi"),
    ],
)
def test_tools_are_written_into_the_messages_where_a_template_has_none(
    chat_template: str, prompt: str
) -> None:
    assert rendered(chat_template, messages=[U], tools=[TOOL]) == prompt


EITHER = "c.function.arguments if c.function.arguments is string else c.function.arguments | tojson"


def test_tools_and_calls_are_written_in_words_without_a_known_format() -> None:
    chat_template = template().replace("<tool_call>", "")
    prompt = rendered(chat_template, messages=[U, CALL, R], tools=[TOOL])
    assert prompt == f"<system>{TOLD}<user>hi<assistant>{CALL_TEXT}<user>{RESULT_TEXT}"
    assert rendered(chat_template, messages=[U, A, U]) == "<user>hi<assistant>yes<user>hi"


ORDINARY = [
    [U],
    [S, U],
    [S, U, A, U],
    [S, U, CALL, R],
    [U, assistant(None, '{"k":  "v"}'), R],
    [U, assistant("", '{"k": "v"}', '{"k": 1}'), R, result("two", 1), A, U],
    [S, user(" with \n blanks & <signs> \u00e9 "), A, user("/no_think")],
    [U, assistant("<think>\nHm.\n</think>\n\nyes"), U],
]


@pytest.mark.parametrize("messages", ORDINARY)
@pytest.mark.parametrize(
    "chat_template",
    [
        template(),
        template(said=SAID.replace("m.content", "m.content | trim")),
        template(said=SAID.replace("m.content", "m.content | tojson")),
        template(said=SAID.replace("m.content", "m.content | e")),
        template(said=SAID.replace("m.content", "m.content.split('</think>')[-1]")),
        template(said=SAID.replace("m.content", "m.content.replace('/no_think', '')")),
        template(called=CALLED.replace(ARGUMENTS, EITHER)),
        refuses("m.role == 'system' and not loop.first"),
        ONLY_FIRST_SYSTEM,
    ],
)
def test_what_a_template_takes_is_rendered_as_transformers_does(
    messages: list[dict[str, Any]], chat_template: str
) -> None:
    for tools in ([], [TOOL]):
        inner = load_fake_tokenizer("fake", chat_template).inner
        expected = inner.apply_chat_template(
            [_with_objects(message) for message in messages],
            tools=tools or None,
            chat_template=chat_template,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert rendered(chat_template, messages=messages, tools=tools) == expected


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message in the form of transformers: arguments are objects, no content is None."""
    calls = message.get("tool_calls")
    if calls is None:
        return message
    functions = [
        {"name": call["function"]["name"], "arguments": json.loads(call["function"]["arguments"])}
        for call in calls
    ]
    taken = [call | {"function": new} for call, new in zip(calls, functions, strict=True)]
    return message | {"content": message["content"] or "", "tool_calls": taken}


@pytest.mark.parametrize(
    "chat_template",
    [
        "{{ raise_exception('Secret.') }}",
        "{{ messages[0].content.secret.secret }}",
        "{{ 1 // 0 }}",
        "a template that shows nothing",
        "{% macro secret() %}{{ secret() }}{% endmacro %}{{ secret() }}",
    ],
)
def test_a_template_that_takes_no_form_is_a_400_in_our_words(chat_template: str) -> None:
    with pytest.raises(ApiError) as raised:
        rendered(chat_template, messages=[S, U, CALL, R], tools=[TOOL])
    assert (raised.value.status, raised.value.code) == (400, "chat_template_error")
    assert raised.value.param == "messages"
    assert "takes these messages in none of the forms" in raised.value.message
    assert "secret" not in raised.value.message.lower()


def test_a_refusal_says_what_the_template_refuses() -> None:
    with pytest.raises(ApiError, match=r"What it refuses: .*two user messages in a row, "):
        rendered(refuses("messages | length > 1"), messages=[U, A, U])


def test_a_continued_answer_stays_the_last_text() -> None:
    for chat_template in (template(), ALTERNATES, refuses("m.role == 'system'")):
        messages = [S, U, U, assistant("Once upon")]
        prompt = rendered(chat_template, messages=messages, continue_final_message=True)
        assert prompt.endswith("<assistant>Once upon")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("{{ m.content }}", "<think>\nhm\n</think>\n\nOnce upon"),
        ("{{ m.content.split('</think>')[-1] | trim }}", "Once upon"),
        (
            "{% if m.reasoning_content %}[{{ m.reasoning_content }}]{% endif %}"
            "{{ m.content.split('</think>')[-1] | trim }}",
            "[hm]Once upon",
        ),
    ],
)
def test_an_answer_with_a_thought_in_its_text_is_continued(said: str, expected: str) -> None:
    messages = [U, assistant("<think>\nhm\n</think>\n\nOnce upon")]
    prompt = rendered(template(said=said), messages=messages)
    assert prompt == "hi" + expected


def test_the_probe_finds_what_a_template_takes() -> None:
    assert load_fake_tokenizer("fake", template()).support == TemplateSupport()
    found = load_fake_tokenizer("fake", ONLY_FIRST_SYSTEM).support.without_tools
    assert found.lost == {Feature.SECOND_SYSTEM, Feature.LATER_SYSTEM}
    assert not found.refused
    found = load_fake_tokenizer("fake", ALTERNATES).support.with_tools
    assert not found.lost
    assert found.refused == {Feature.CALL, Feature.USERS, Feature.ASSISTANTS, Feature.SECOND_SYSTEM}
