"""The formats in which the scripted models answer, as the models themselves write them.

The chat templates in `templates/` are small ones with the marks of the real ones. All of them write
each tool as the JSON object that the request has, so that the script can find it.

This file needs only the standard library.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEMPLATES = Path(__file__).parent / "templates"
WriteCall = Callable[[str, Mapping[str, Any]], str]


@dataclass(frozen=True)
class ModelFormat:
    """How the models of one family write answers.

    Args:
        call: returns a call, given the name of the tool and the arguments.
        result: the mark of a tool's result in a prompt, once for each result.
        marks: the special tokens of the vocabulary.
        ends: the special tokens that end an answer; an answer with calls ends with the last.
        thought: the text around a thought; empty if the models do not think.
        text: the text around an answer's text.
        text_before_calls: the text around a text that calls follow; None if it is left out.
        has_one_call: whether an answer has at most one call.
    """

    call: WriteCall
    result: str
    marks: tuple[str, ...]
    ends: tuple[str, ...]
    thought: tuple[str, str] | None = None
    text: tuple[str, str] = ("", "")
    text_before_calls: tuple[str, str] | None = ("", "\n")
    has_one_call: bool = False

    def write(self, text: str, thought: str, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> str:
        """Return an answer with its end."""
        assert len(calls) <= 1 or not self.has_one_call
        parts = [thought.join(self.thought)] if thought and self.thought else []
        around = self.text_before_calls if calls else self.text
        if text and around:
            parts.append(text.join(around))
        parts.append("\n".join(self.call(name, arguments) for name, arguments in calls))
        return "".join(parts) + self.ends[-1 if calls else 0]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _raw(value: Any) -> str:
    return value if isinstance(value, str) else _json(value)


def _hermes(name: str, arguments: Mapping[str, Any]) -> str:
    return f"<tool_call>\n{_json({'name': name, 'arguments': arguments})}\n</tool_call>"


def _qwen3_coder(name: str, arguments: Mapping[str, Any]) -> str:
    lines = [f"<parameter={key}>\n{_raw(value)}\n</parameter>" for key, value in arguments.items()]
    return "\n".join(["<tool_call>", f"<function={name}>", *lines, "</function>", "</tool_call>"])


def _harmony(name: str, arguments: Mapping[str, Any]) -> str:
    head = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
    return head + _json(arguments)


def _llama3_json(name: str, arguments: Mapping[str, Any]) -> str:
    return _json({"name": name, "parameters": arguments})


def _mistral(name: str, arguments: Mapping[str, Any]) -> str:
    return f"[TOOL_CALLS]{name}[ARGS]{_json(arguments)}"


def _glm(name: str, arguments: Mapping[str, Any]) -> str:
    pairs = [
        f"<arg_key>{key}</arg_key>\n<arg_value>{_raw(value)}</arg_value>\n"
        for key, value in arguments.items()
    ]
    return f"<tool_call>{name}\n{''.join(pairs)}</tool_call>"


THINK = ("<think>\n", "\n</think>\n\n")
NEXT = "<|end|><|start|>assistant"

FORMATS: dict[str, ModelFormat] = {
    "hermes": ModelFormat(
        _hermes,
        result="<tool_response>",
        marks=("<|im_start|>", "<|im_end|>"),
        ends=("<|im_end|>",),
        thought=THINK,
    ),
    "qwen3_coder": ModelFormat(
        _qwen3_coder,
        result="<tool_response>",
        marks=("<|im_start|>", "<|im_end|>"),
        ends=("<|im_end|>",),
    ),
    "harmony": ModelFormat(
        _harmony,
        result=" to=assistant<|channel|>commentary<|message|>",
        marks=(
            *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>"),
            *("<|return|>", "<|call|>"),
        ),
        ends=("<|return|>", "<|call|>"),
        thought=("<|channel|>analysis<|message|>", NEXT),
        text=("<|channel|>final<|message|>", ""),
        text_before_calls=("<|channel|>commentary<|message|>", NEXT),
        has_one_call=True,
    ),
    "llama3_json": ModelFormat(
        _llama3_json,
        result="<|start_header_id|>ipython<|end_header_id|>",
        marks=(
            *("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
            *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
        ),
        ends=("<|eot_id|>", "<|eom_id|>"),
        text_before_calls=None,
        has_one_call=True,
    ),
    "mistral": ModelFormat(
        _mistral,
        result="[TOOL_RESULTS]",
        marks=(
            *("<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
            *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]"),
            *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
        ),
        ends=("</s>",),
    ),
    "glm": ModelFormat(
        _glm,
        result="<tool_response>",
        marks=(
            *("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>"),
            "<|endoftext|>",
        ),
        ends=("<|endoftext|>", "<|observation|>"),
        thought=("\n<think>", "</think>\n"),
    ),
}
