"""Tests of thinking budgets: how requests give them, and how thoughts of each family are closed."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from llguidance import LLMatcher, LLTokenizer
from tokenizers import AddedToken, Tokenizer as RawTokenizer, normalizers
from transformers import PreTrainedTokenizerFast

from engine.messages import ModelInfo, ThinkingBudget
from engine.parsing.selection import known_formats
from engine.text.detokenize import TokenBytes
from server.chat.prepare import Prepared, prepare
from server.chat.received import read_chat
from server.config.model_file import SamplingSection
from server.text.tokenizer import Tokenizer
from tests.demo_server import ROOT
from tests.engine.small_tokenizers import byte_level, sentencepiece
from tests.server.chat.test_tools import TEMPLATE, TOOLS
from tests.server.conftest import MakeApp, chat, client_of, entry, error_of
from tests.server.fake_engine import EOS, FakeEngines, load_fake_tokenizer

HEADER = "x-understudy-ignored"
INFO = ModelInfo("m", 259, 4096, 4096, 1, (EOS,), "strict", "f", "p", "p")

START = "{% for m in messages %}<turn>{{ m.role }}:"
END = "{{ m.content }}<eos>{% endfor %}{% if add_generation_prompt %}<turn>assistant:"
HIDDEN = f"{START}{END}"


def shown(begin: str, close: str) -> str:
    """Return the beginning of a template that shows past reasoning between these texts."""
    thought = f"{begin}{{{{ m.reasoning_content }}}}{close}"
    return f"{START}{{% if m.reasoning_content %}}{thought}{{% endif %}}{END}"


HARMONY = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.thinking %}<|channel|>analysis<|message|>"
    "{{ m.thinking }}<|end|><|start|>assistant{% endif %}<|channel|>final<|message|>{{ m.content }}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
ONLY_BEFORE_CALLS = (
    f"{START}{{% if m.reasoning_content and m.tool_calls %}}<|channel>thought\n"
    "{{ m.reasoning_content }}\n<channel|>{% for c in m.tool_calls %}<|tool_call>call:"
    f"{{{{ c.function.name }}}}{{{{ '{{}}' }}}}<tool_call|>{{% endfor %}}{{% endif %}}{END}"
)
# what the family is like: the template, the opening mark, how the thought is closed
FAMILIES: dict[str, tuple[str, str, str]] = {
    "Qwen3": (shown("<think>\n", "\n</think>\n\n") + "{% endif %}", "<think>", "\n</think>\n\n"),
    "Qwen3.5": (
        shown("<think>\n", "\n</think>\n\n") + "<think>\n{% endif %}",
        "",
        "\n</think>\n\n",
    ),
    "GLM": (shown("\n<think>", "</think>\n") + "{% endif %}", "<think>", "</think>\n"),
    "Seed-OSS": (
        shown("<seed:think>", "</seed:think>") + "{% endif %}",
        "<seed:think>",
        "</seed:think>",
    ),
    "DeepSeek-R1": (HIDDEN + "<think>\n{% endif %}", "", "\n</think>\n\n"),
    "DeepSeek-V3.1": (HIDDEN + "<think>{% endif %}", "", "</think>"),
    "SmolLM3": (
        HIDDEN + "{% endif %}{# '<think>\\n\\n</think>\\n' #}",
        "<think>",
        "\n</think>\n\n",
    ),
    "Magistral": (HIDDEN + "{% endif %}{# [THINK] #}", "[THINK]", "[/THINK]"),
    "Command A": (
        shown("<|START_THINKING|>", "<|END_THINKING|>") + "<|START_THINKING|>{% endif %}"
        "{# <|START_ACTION|> #}",
        "",
        "<|END_THINKING|>",
    ),
    "Apriel": (
        shown("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n")
        + "Here are my reasoning steps:\n{% endif %}",
        "",
        "\n[BEGIN FINAL RESPONSE]\n",
    ),
    "Gemma 4": (ONLY_BEFORE_CALLS + "{% endif %}", "<|channel>thought", "\n<channel|>"),
    "gpt-oss": (
        HARMONY,
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "Solar Open": (
        HIDDEN + "{% endif %}{# <|think|> <|tool_call:begin|> #}",
        "<|think|>",
        "<|end|><|begin|>assistant<|content|>",
    ),
    "Muse": (
        START + "{% if m.thinking %} to=self<|message|>{{ m.thinking }}<|eom|><|start|>assistant"
        "{% endif %} to=user<|message|>" + END + "{% endif %}{# <atem: #}",
        " to=self<|message|>",
        "<|eom|><|start|>assistant to=user<|message|>",
    ),
    "Kimi K3": (
        shown("<|open|>think<|sep|>", "<|close|>think<|sep|>") + "<|open|>think<|sep|>{% endif %}",
        "",
        "<|close|>think<|sep|><|open|>response<|sep|>",
    ),
}
ALL = [pytest.param(*family, id=name) for name, family in FAMILIES.items()]


def prepared(template: str, default: int | None = None, **fields: Any) -> Prepared:
    body = {"messages": [{"role": "user", "content": "hi"}], **fields}
    tokenizer = load_fake_tokenizer("thinking", template)
    return prepare(tokenizer, json.dumps(body).encode(), read_chat, INFO, None, None, default)


def budget(template: str, **fields: Any) -> ThinkingBudget:
    made = prepared(template, **fields)
    assert made.thinking is not None and not made.left_out
    return made.thinking


@pytest.mark.parametrize(("template", "begin", "close"), ALL)
def test_a_thought_is_closed_as_the_template_closes_it(
    template: str, begin: str, close: str
) -> None:
    made = budget(template, thinking_budget=7)
    assert (made.tokens, made.begin) == (7, begin)
    assert [bytes(closing).decode() for closing in made.closings] == [close]
    assert made.end in close


@pytest.mark.parametrize(
    ("name", "closings"),
    [
        ("Qwen3", ["\n</think>\n\n"]),
        ("Solar Open", ["<|end|><|begin|>assistant"]),
        (
            "gpt-oss",
            ["<|end|><|start|>assistant", "<|end|><|start|>assistant<|channel|>final<|message|>"],
        ),
    ],
)
def test_a_call_may_follow_a_thought_that_was_closed(name: str, closings: list[str]) -> None:
    made = budget(FAMILIES[name][0], thinking_budget=7, tools=TOOLS)
    assert [bytes(closing).decode() for closing in made.closings] == closings
    assert made.repeats == (name == "gpt-oss")


@pytest.fixture(scope="module")
def raw_tokenizer() -> RawTokenizer:
    """Return the demo's tokenizer with the marks of all formats as special tokens."""
    raw = RawTokenizer.from_file(str(ROOT / "configs/demo/target/tokenizer.json"))
    marks = {mark for known in known_formats().values() for mark in known.special_tokens}
    raw.add_special_tokens([AddedToken(mark, special=True) for mark in sorted(marks)])
    return raw


@pytest.fixture(scope="module")
def matcher_tokenizer(raw_tokenizer: RawTokenizer) -> LLTokenizer:
    return LLTokenizer(raw_tokenizer.to_str())


NUMBER = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
FORMED = {"type": "json_schema", "json_schema": {"name": "n", "schema": NUMBER}}


@pytest.mark.parametrize("is_call", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_a_grammar_takes_the_closing_tokens(
    raw_tokenizer: RawTokenizer, matcher_tokenizer: LLTokenizer, name: str, is_call: bool
) -> None:
    called = {"tools": TOOLS, "tool_choice": "required"}
    fields: dict[str, Any] = called if is_call else {"response_format": FORMED}
    inner: Any = PreTrainedTokenizerFast
    inner = inner(tokenizer_object=raw_tokenizer)
    tokenizer = Tokenizer(inner, TokenBytes(raw_tokenizer), FAMILIES[name][0])
    body = {"messages": [{"role": "user", "content": "hi"}], "thinking_budget": 7, **fields}
    info = replace(INFO, vocab_size=raw_tokenizer.get_vocab_size())
    made = prepare(tokenizer, json.dumps(body).encode(), read_chat, info, None, None, None)
    assert made.thinking is not None
    spelled = tokenizer.bytes.showing(made.shown_tokens)
    close = made.thinking.closings[0]
    written = b"".join(spelled[token] for token in close).decode()
    assert made.thinking.end in written and FAMILIES[name][2].startswith(written)
    ids = [*tokenizer.encode(f"{made.thinking.begin}Hm", special=False), *close]
    matcher = LLMatcher(matcher_tokenizer, made.grammar)
    assert matcher.try_consume_tokens(ids) == len(ids), matcher.get_error()
    if not is_call:
        answer = [*tokenizer.encode('{"a": 1}', special=False)]
        assert matcher.try_consume_tokens(answer) == len(answer) and matcher.is_accepting()


def prepending() -> RawTokenizer:
    """Return a tokenizer that puts a blank before the first word of a text, as Llama 2's."""
    made = RawTokenizer.from_str(sentencepiece().to_str())
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), made.normalizer])
    return made


@pytest.mark.parametrize("make", [byte_level, sentencepiece, prepending])
def test_closing_tokens_spell_the_text_within_an_answer(make: Callable[[], RawTokenizer]) -> None:
    raw = make()
    inner: Any = PreTrainedTokenizerFast
    tokenizer = Tokenizer(inner(tokenizer_object=raw), TokenBytes(raw), FAMILIES["DeepSeek-R1"][0])
    body = {"messages": [{"role": "user", "content": "hi"}], "thinking_budget": 7}
    info = replace(INFO, vocab_size=raw.get_vocab_size())
    made = prepare(tokenizer, json.dumps(body).encode(), read_chat, info, None, None, None)
    assert made.thinking is not None
    (close,) = made.thinking.closings
    assert b"".join(map(tokenizer.bytes.__getitem__, close)) == b"\n</think>\n\n"


def test_a_thought_that_the_request_has_begun_counts() -> None:
    last = {"role": "assistant", "content": "<think>\n12345"}
    messages = [{"role": "user", "content": "hi"}, last]
    template = HIDDEN + "{% endif %}{# <think> #}"
    made = budget(template, thinking_budget=9, messages=messages)
    assert (made.tokens, made.begin) == (4, "")
    assert [bytes(c) for c in made.closings] == [b"\n</think>\n\n"]
    assert budget(template, thinking_budget=2, messages=messages).tokens == 0


@pytest.mark.parametrize(
    ("fields", "default", "tokens"),
    [
        ({}, None, None),
        ({"thinking_budget": 5}, None, 5),
        ({"thinking_token_budget": 5}, None, 5),
        ({"thinking_budget_tokens": 5}, None, 5),
        ({"reasoning": {"max_tokens": 5}}, None, 5),
        ({"thinking": {"type": "enabled", "budget_tokens": 5}}, None, 5),
        ({"thinking": {"type": "adaptive", "budget_tokens": 5}}, None, 5),
        ({"thinking_budget": 6, "reasoning": {"max_tokens": 5}}, None, 5),
        ({"thinking_budget": 2**62}, None, 2**62),
        ({"thinking_budget": 100, "max_tokens": 5}, None, 100),
        ({"thinking_budget": -1}, None, None),
        ({"thinking_budget": -1, "enable_thinking": True}, 8, 8),
        ({"enable_thinking": True}, 8, 8),
        ({"enable_thinking": True, "thinking_budget": 9}, 8, 9),
        ({"thinking_budget": 0}, 8, None),
        ({"reasoning": {"max_tokens": 0, "effort": "low"}}, None, None),
        ({"thinking_budget": 5, "enable_thinking": False}, None, None),
        ({"thinking_budget": 5, "reasoning_effort": "none"}, None, None),
        ({"thinking": {"type": "disabled", "budget_tokens": 5}}, None, None),
        ({"reasoning": {"max_tokens": 5, "enabled": False}}, None, None),
    ],
)
def test_the_fields_of_a_chat(
    fields: dict[str, Any], default: int | None, tokens: int | None
) -> None:
    template = HIDDEN + "{{ '<think>' if enable_thinking else '</think>' }}{% endif %}"
    made = prepared(template, default, **fields)
    assert made.left_out == []
    assert made.before.endswith("<think>") == isinstance(tokens, int)
    assert (made.thinking and made.thinking.tokens) == tokens


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"thinking_budget": 5}, "5"),
        ({"thinking_budget": 5, "chat_template_kwargs": {"thinking_budget": 6}}, "6"),
        ({"enable_thinking": True}, ""),
        ({"enable_thinking": False}, "0"),
        ({}, ""),
    ],
)
def test_a_template_can_tell_the_model_its_budget(fields: dict[str, Any], told: str) -> None:
    template = HIDDEN + "{{ thinking_budget }}{% endif %}"
    assert prepared(template, **fields).before.endswith(f"assistant:{told}")


@pytest.fixture
async def client(make_app: MakeApp) -> Any:
    entries = [
        entry("main", chat_template=TEMPLATE, sampling=SamplingSection(thinking_budget=70)),
        entry("plain", chat_template=TEMPLATE.replace("think", "ponder")),
    ]
    async with client_of(make_app(entries=entries)) as client:
        yield client


MESSAGE = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 50}


@pytest.mark.parametrize(
    ("path", "body", "tokens"),
    [
        ("/v1/chat/completions", {**MESSAGE, "reasoning": {"max_tokens": 6}}, 6),
        ("/v1/chat/completions", {**MESSAGE, "enable_thinking": True}, 70),
        ("/v1/messages", {**MESSAGE, "thinking": {"type": "enabled", "budget_tokens": 6}}, 6),
        ("/v1/messages", {**MESSAGE, "thinking": {"type": "enabled"}}, 70),
        ("/v1/messages", {**MESSAGE, "thinking": {"type": "enabled", "budget_tokens": 0}}, 0),
        ("/v1/responses", {"input": "hi", "reasoning": {"max_tokens": 6}}, 6),
        *(
            (path, {**MESSAGE, "input": "hi", **fields}, tokens)
            for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses")
            for fields, tokens in (
                ({"thinking_budget": 6}, 6),
                ({"thinking_token_budget": 6}, 6),
                ({"thinking_budget_tokens": 6}, 6),
                ({"reasoning": {"max_tokens": 6}}, 6),
                ({"reasoning": {"max_tokens": 7}, "thinking_budget": 6}, 6),
                ({"thinking": {"type": "enabled", "budget_tokens": 7}, "thinking_budget": 6}, 6),
                ({"reasoning_effort": "low"}, 70),
                ({"enable_thinking": True}, 70),
                ({"reasoning": {"enabled": True}}, 70),
            )
        ),
    ],
)
async def test_every_door_passes_the_budget_on(
    client: httpx.AsyncClient, engines: FakeEngines, path: str, body: Any, tokens: int
) -> None:
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    assert HEADER not in answer.headers
    thinking = engines.engine.requests[-1].params.thinking
    assert thinking is not None and thinking.tokens == tokens
    prompt = bytes(i for i in engines.engine.requests[-1].prompt if i < 256)
    assert prompt.endswith(b"<think>") == (tokens > 0)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {**MESSAGE, "thinking_budget": 6}),
        ("/v1/messages", {**MESSAGE, "thinking": {"type": "enabled", "budget_tokens": 6}}),
        ("/v1/responses", {"input": "hi", "reasoning": {"max_tokens": 6}}),
    ],
)
async def test_a_budget_is_left_out_where_no_thought_is_known(
    client: httpx.AsyncClient, engines: FakeEngines, path: str, body: Any
) -> None:
    answer = await client.post(path, json={"model": "plain", **body})
    assert answer.headers[HEADER] == "thinking budget"
    assert engines.engine.requests[-1].params.thinking is None


@pytest.mark.parametrize(
    "fields",
    [
        {"thinking_budget": 6, "thinking": {"type": "disabled"}},
        {"thinking_budget": 6, "enable_thinking": False},
        {"thinking_budget": 6, "reasoning_effort": "none"},
        {"reasoning": {"max_tokens": 6, "enabled": False}},
        {"reasoning": {"max_tokens": 6, "effort": "none"}},
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/v1/responses"])
async def test_every_door_lets_reasoning_be_turned_off(
    client: httpx.AsyncClient, engines: FakeEngines, path: str, fields: dict[str, Any]
) -> None:
    answer = await client.post(path, json={**MESSAGE, "input": "hi", **fields})
    assert answer.status_code == 200, answer.text
    prompt = bytes(i for i in engines.engine.requests[-1].prompt if i < 256)
    assert not prompt.endswith(b"<think>")


@pytest.mark.parametrize("wrong", [-2, "5", 1.5, True, []])
@pytest.mark.parametrize(
    "path", ["thinking_budget", "reasoning.max_tokens", "thinking.budget_tokens"]
)
async def test_a_budget_without_a_meaning_is_refused(
    client: httpx.AsyncClient, path: str, wrong: Any
) -> None:
    outer, _, inner = path.partition(".")
    fields = {outer: {"type": "enabled", inner: wrong} if inner else wrong}
    error = error_of(await chat(client, **fields), 400)
    assert error["param"].startswith(outer) and error["param"].endswith(inner)
    if wrong == -2:
        text = f"Invalid value for '{path}': Input should be 0 or more, or -1 for no limit."
        assert error["message"] == text
