"""Tests with instructor: answers become objects, in the modes that enforce the schema."""

from typing import Any, Literal

import pytest
from pydantic import BaseModel

from tests.clients.conftest import STORY

instructor = pytest.importorskip("instructor")
openai = pytest.importorskip("openai")


class Pet(BaseModel):
    """A pet with name and age."""

    name: Literal["Ada", "Bo"]
    age: int


@pytest.mark.parametrize("mode", ["TOOLS", "JSON_SCHEMA"])
def test_an_answer_becomes_an_object_of_a_class(url: str, mode: str) -> None:
    client = openai.OpenAI(base_url=url, api_key="none", max_retries=0)
    patched = instructor.from_openai(client, mode=instructor.Mode[mode])
    asked: Any = {"model": "demo", "messages": [{"role": "user", "content": STORY}]}
    asked |= {"response_model": Pet, "temperature": 1, "max_tokens": 160, "max_retries": 0}
    assert isinstance(patched.chat.completions.create(**asked), Pet)
    *_, last = patched.chat.completions.create_partial(**asked)
    assert last.name in ("Ada", "Bo")
