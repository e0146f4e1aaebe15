"""The text with which a chat begins, before the first words of its user.

A chat template is a program by the model's author, so it runs in a process of its own, under the
limits of `engine.text.check`.
"""

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from engine.text import check

_USER = "the first words of the user"  # searched in the rendered text; no template changes letters


def start_tokens(tokenizer: Any) -> list[int]:
    """Return the ids of the tokens that come before the first words of a chat's user.

    Where there is no chat template, or it fails, this is the token that begins a text. The list is
    empty if the tokenizer names none.
    """
    text = _render(tokenizer) if isinstance(tokenizer.chat_template, str) else ""
    if text:
        ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids
    # A model without a token for the beginning has learned that a text follows the end of another.
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return [int(token)]
    return []


def _render(tokenizer: Any) -> str:
    """Return the start of a chat as the tokenizer's template renders it; "" if that fails."""
    order = {"template": tokenizer.chat_template, "tokens": dict(tokenizer.special_tokens_map)}
    limits = [str(check.MEMORY), str(check.CPU_SECONDS)]
    command = [sys.executable, "-m", "engine.text.chat_start", *limits]
    text = json.dumps(order).encode()
    try:
        done = subprocess.run(command, input=text, capture_output=True, timeout=check.SECONDS)
    except subprocess.TimeoutExpired:
        return ""
    return "" if done.returncode else done.stdout.decode(errors="replace")


def render_start(template: str, tokens: Mapping[str, str]) -> str:
    """Return the text that a template puts before a user's first words; "" if it leaves them out.

    Call this under limits of time and memory. It raises what the template or Jinja raises.

    Args:
        tokens: the special tokens that the template may name, such as "bos_token".
    """
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = [{"role": "user", "content": _USER}]
    names: dict[str, Any] = dict(tokens)
    rendered: Any = render_jinja_template([chat], chat_template=template, **names)
    before, found, _ = rendered[0][0].partition(_USER)
    return before if found else ""


def _main(memory: str, seconds: str) -> None:
    check.limit_process(int(memory), int(seconds))
    order = json.load(sys.stdin)
    print(render_start(order["template"], order["tokens"]), end="")


if __name__ == "__main__":
    _main(*sys.argv[1:])
