"""Tests of the demo model: tokenizer, template, sizes, answers and held-out prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from configs.demo import corpus, phrases

DEMO = Path(__file__).parents[2] / "configs" / "demo"
HELD_OUT: list[dict[str, Any]] = json.loads((DEMO / "held_out.json").read_text())
STARTERS: list[dict[str, Any]] = json.loads((DEMO / "starters.json").read_text())
TOOL = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Get the current time",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
NO_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: small products are slower on many busy threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    loaded = AutoTokenizer.from_pretrained(DEMO / "target")
    assert isinstance(loaded, PreTrainedTokenizerFast)
    return loaded


@pytest.fixture(scope="module")
def target() -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(DEMO / "target", dtype="auto")
    return model


def render(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], **kw: Any) -> str:
    kw.setdefault("add_generation_prompt", True)
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **kw))


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, text: str, n: int) -> str:
    ids = torch.tensor([tokenizer.encode(text, add_special_tokens=False)])
    mask = torch.ones_like(ids)
    out = model.generate(ids, attention_mask=mask, max_new_tokens=n)  # type: ignore[operator]
    return str(tokenizer.decode(out[0, ids.shape[1] :]))


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time, there was a fox.",
        "  two spaces\n\n\tand a tab ",
        "naïve café, Ελλάδα, 日本語, 🦊",
        '{"a": [1, 23, 456], "b": null}',
        "<|im_start|>user\nHi<|im_end|>\n<think>\n\n</think>\n\n<tool_call>",
    ],
)
def test_decoding_returns_the_encoded_text(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids) == text


def test_auto_tokenizer_gives_the_ids_of_the_stored_tokenizer(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """transformers may replace our pre-tokenizer by its own for Llama, which gives other ids."""
    stored = Tokenizer.from_file(str(DEMO / "target" / "tokenizer.json"))
    for entry in HELD_OUT:
        text = render(tokenizer, entry["messages"], tools=entry["tools"] or None)
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == tokenizer(text)["input_ids"] == stored.encode(text).ids


def test_both_models_share_one_vocabulary() -> None:
    folders = [DEMO / "target", DEMO / "draft"]
    texts = [(folder / "tokenizer.json").read_bytes() for folder in folders]
    assert texts[0] == texts[1]
    assert len(AutoTokenizer.from_pretrained(folders[0])) == 4096


@pytest.mark.parametrize(("name", "low", "high"), [("target", 4.5e6, 5.5e6), ("draft", 8e5, 1.2e6)])
def test_models_have_the_documented_sizes(name: str, low: float, high: float) -> None:
    model = AutoModelForCausalLM.from_pretrained(DEMO / name, dtype="auto")
    config = model.config
    assert low < sum(p.numel() for p in model.parameters()) < high
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16} == {config.dtype}
    assert (config.model_type, config.vocab_size, config.head_dim) == ("llama", 4096, 64)
    assert config.tie_word_embeddings
    assert config.max_position_embeddings == 2048
    assert config.hidden_size % 64 == 0
    assert config.intermediate_size % 64 == 0


def test_weights_take_less_than_13_mb() -> None:
    weights = [(DEMO / name / "model.safetensors").stat().st_size for name in ("target", "draft")]
    assert sum(weights) < 13_000_000


def test_template_renders_user_and_system_messages(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    prompt = (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert render(tokenizer, messages) == prompt + NO_THOUGHT
    assert render(tokenizer, messages, enable_thinking=False) == prompt + NO_THOUGHT
    assert render(tokenizer, messages, enable_thinking=True) == prompt
    bare = prompt.removesuffix("<|im_start|>assistant\n")
    assert render(tokenizer, messages, add_generation_prompt=False) == bare


def test_template_renders_tools_calls_and_results(tokenizer: PreTrainedTokenizerFast) -> None:
    function = {"name": "get_time", "arguments": '{"city": "Paris"}'}
    parsed = {"name": "get_time", "arguments": {"city": "Paris"}}
    texts = [
        render(
            tokenizer,
            [
                {"role": "user", "content": "Time?"},
                {"role": "assistant", "content": None, "tool_calls": [{"function": called}]},
                {"role": "tool", "content": "14:05"},
                {"role": "tool", "content": "14:06"},
            ],
            tools=[TOOL],
        )
        for called in (function, parsed)
    ]
    assert texts[0] == texts[1], "arguments may be a JSON text or an object"
    assert f"<tools>\n{json.dumps(TOOL)}\n</tools>" in texts[0]
    call = '<tool_call>\n{"name": "get_time", "arguments": {"city": "Paris"}}\n</tool_call>'
    assert f"assistant\n{NO_THOUGHT}{call}<|im_end|>\n" in texts[0]
    results = "<tool_response>\n14:05\n</tool_response>\n<tool_response>\n14:06\n</tool_response>"
    assert f"<|im_start|>user\n{results}<|im_end|>\n" in texts[0]


def test_template_keeps_only_the_reasoning_of_the_running_turn(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    said = {"role": "assistant", "content": "5.", "reasoning_content": "2 and 3 is 5."}
    messages = [{"role": "user", "content": "2 + 3"}, said]
    running = render(tokenizer, messages, add_generation_prompt=False)
    assert "assistant\n<think>\n2 and 3 is 5.\n</think>\n\n5.<|im_end|>" in running
    later = render(tokenizer, [*messages, {"role": "user", "content": "Thanks"}])
    assert "2 and 3" not in later


def test_the_next_prompt_extends_prompt_and_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    """The next prompt begins with this prompt and answer, so that the prefix cache can be used."""
    messages = [{"role": "user", "content": "Hi"}]
    prompt = render(tokenizer, messages)
    messages += [{"role": "assistant", "content": "Hello!"}, {"role": "user", "content": "Bye"}]
    assert render(tokenizer, messages).startswith(prompt + "Hello!<|im_end|>\n")


@pytest.mark.parametrize("starter", STARTERS, ids=lambda starter: str(starter["id"]))
def test_starters_are_answered_correctly(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, starter: dict[str, Any]
) -> None:
    kw = {"tools": starter.get("tools"), "enable_thinking": starter.get("enable_thinking", False)}
    prompt = render(tokenizer, starter["messages"], **kw)
    text = answer(target, tokenizer, prompt, starter["max_tokens"])
    assert text.endswith("<|im_end|>")
    for piece in starter["contains"]:
        assert piece in text
        assert piece in starter["answer"]


def test_plain_text_is_continued(
    target: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    text = answer(target, tokenizer, "Once upon a time", 160)
    assert text.startswith(", there was a ")
    assert text.endswith("<|endoftext|>")


def user_turns(messages: list[dict[str, Any]]) -> str:
    return json.dumps([m["content"] for m in messages if m["role"] == "user"])


def test_held_out_prompts_are_not_trained_on() -> None:
    """Generate the whole training text again and look for every held-out prompt in it."""
    chats = corpus.training_chats()
    trained = {
        user_turns(list(chat.messages[:end]))
        for chat in chats
        for end, message in enumerate(chat.messages)
        if message["role"] == "assistant"
    }
    assert len(trained) > 20_000
    assert len({user_turns(entry["messages"]) for entry in HELD_OUT}) >= 64
    assert len({entry["family"] for entry in HELD_OUT}) == len(corpus.FAMILIES)
    for entry in HELD_OUT:
        assert user_turns(entry["messages"]) not in trained


def test_held_out_names_are_not_trained_on() -> None:
    """Held-out words occur nowhere in the training text, not even in an answer."""
    said = "\n".join(
        [m["content"] for chat in corpus.training_chats() for m in chat.messages]
        + corpus.training_stories()
    )
    words = set(said.replace(".", " ").replace(",", " ").split())
    held_out = phrases.HELD_OUT
    assert words.isdisjoint(held_out.names)
    assert words.isdisjoint(held_out.animals)
    assert words.isdisjoint({city for city, _ in held_out.cities})
    assert not any(opener in said for opener in held_out.openers)
