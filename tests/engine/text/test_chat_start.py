"""Tests of the tokens with which a chat begins."""

from pathlib import Path
from typing import Any

import pytest

from engine.text import check
from engine.text.chat_start import render_start, start_tokens
from engine.text.tokenizer import read_tokenizer
from tests.engine.models import add_tokenizer

TURN = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(name="tokenizer")
def _tokenizer(tmp_path: Path) -> Any:
    add_tokenizer(tmp_path)
    return read_tokenizer(tmp_path)


def text_of(tokenizer: Any) -> str:
    return str(tokenizer.backend_tokenizer.decode(start_tokens(tokenizer)))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TURN, "<user>"),
        ("{{ bos_token }}You are a model." + TURN, "!You are a model.<user>"),
        ("{% if messages[0].role != 'system' %}<system>{% endif %}" + TURN, "<system><user>"),
        ("{% for m in messages %}<{{ m.role }}>{% endfor %}", ""),  # the words are left out
        ("{{ messages[0].content }}", ""),  # nothing comes before them
    ],
)
def test_the_template_says_what_comes_before_the_words_of_a_user(
    template: str, expected: str
) -> None:
    assert render_start(template, {"bos_token": "!"}) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (TURN, "<user>"),
        ("{{ raise_exception('no') }}" + TURN, "!"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "!"),
        (None, "!"),
    ],
)
def test_without_a_template_that_works_a_chat_begins_as_any_text(
    template: str | None, expected: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "CPU_SECONDS", 3)
    tokenizer.chat_template = template
    tokenizer.bos_token = "!"
    assert text_of(tokenizer) == expected


def test_a_text_begins_after_the_end_of_another_if_there_is_no_token_for_its_beginning(
    tokenizer: Any,
) -> None:
    assert start_tokens(tokenizer) == []
    tokenizer.eos_token = "#"
    assert text_of(tokenizer) == "#"
