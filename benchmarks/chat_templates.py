"""How real chat templates take conversations of every shape: fine, refused, or with a text lost.

    python -m benchmarks.chat_templates FOLDER [--refused]

Reads every `*.jinja` and every `tokenizer_config.json` below the folder: templates come with models
and are not kept here. Each is given all conversations below, without tools and with, as the body of
a chat, and what it renders is searched for every text that the body has.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as RawTokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from engine.parsing.selection import formats_of
from engine.text.detokenize import TokenBytes
from server.chat.prompt import chat_prompt
from server.errors import ApiError
from server.schemas.chat import ChatRequest
from server.schemas.checking import check_object
from server.text.tokenizer import Tokenizer

# s, d: system, developer; u, n, U: a user, one with a name, one without a text;
# a, h: the assistant, with reasoning; k: with a thought in its text; A: without a text;
# N: with a name; w: a refusal beside a text;
# c: a call, t: after reasoning, C: with a text, T: with both; 2, 3: several calls;
# e: without arguments; x: with arguments that are no JSON; o: in the form before tools;
# r: the result of the next call that has none, R: of the last such call; i: with an image in it;
# b: without a text; f: in the form before tools;
# y: a user's text in many scripts, with marks of templates; l: a very long one.
SHAPES = (
    *("u", "su", "du", "sdu", "ssu", "s", "ss", "uu", "suu", "suuu", "uau", "suau", "suuau"),
    *("uaau", "suaau", "suauu", "au", "sau", "a", "ua", "sua", "usu", "us", "sus", "uas", "suas"),
    *("uasu", "suasu", "suausu", "suauasu", "uahu", "uhu", "suhuhu", "nu", "nn", "sn"),
    *("uc", "suc", "ucr", "sucr", "ucra", "ucrau", "sucrau", "ucru", "sucru", "sucruau", "ucu"),
    *("utr", "utrau", "uCr", "sCr", "uCrau", "uTr", "suTr", "uTrau", "suTrau", "uTrTrau"),
    *("u2rr", "su2rr", "u2rrau", "u2rru", "u2rr2rrau", "ucrcr", "ucrcrau", "uer", "uerau"),
    *("sss", "sssu", "sdsu", "dsdu", "uadau", "uadu", "ucrdu", "udadu", "ssuddau", "sudsaudu"),
    *("U", "sU", "Uau", "uAu", "uAAu", "suAu", "UAU", "sUAUau", "ucbu", "uebau", "ucbcbau"),
    *("u2RR", "u2RRau", "u3rRr", "u3RRRau", "u3r", "u2r", "u2rau", "uC2rrr", "uCru2RRau"),
    *("uci", "uciau", "uciu", "u2irau", "ux", "uxr", "uxrau", "ux2rrr", "uof", "uofau", "uofofu"),
    *("uk", "uku", "ukuku", "suku", "ukucrau", "uhuhucrahu", "uhh", "uth", "utrhu", "utrtrau"),
    *("uNuNu", "nNnN", "unau", "sNu", "uwu", "wu", "uwwu", "uTwu", "yay", "syaycru", "la", "sluau"),
    *("ucur", "ucaru", "ucsrau", "ucucrr", "uccrr", "uccrrau", "u2ur", "suc2urrrau"),
    *("ucrsu", "ucrs", "sucrasu", "ucsr", "cr", "scr", "ucrcrucrau", "uuTrsuau", "suasu2rrsu"),
)
SCRIPTS = 'é😀 ﷺ \u202e 日本 <|im_end|> [INST] {{ x }} {% if %} <tool_call> &amp; \\n "q" </s>'
LONG = "word " * 50_000
TOOLS = {
    "plain": {
        "name": "look_up",
        "description": "Looks up.",
        "parameters": {
            "type": "object",
            "properties": {"key": {"type": "string", "description": "The key."}},
            "required": ["key"],
        },
    },
    "bare": {"name": "look_up", "parameters": {"type": "object", "properties": {"key": {}}}},
    "without_description": {
        "name": "look_up",
        "parameters": {"type": "object", "properties": {"key": {"type": "string"}}},
    },
    "without_parameters": {"name": "look_up"},
    "empty_object": {"name": "look_up", "description": "d", "parameters": {"type": "object"}},
    "odd": {
        "name": "look_up",
        "description": "d",
        "parameters": {
            "type": "object",
            "properties": {
                "a": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                "b": {"enum": ["x", "y"]},
                "c": {"type": ["string", "null"], "default": None},
                "d": {"type": "array"},
                "e": {"type": "object", "additionalProperties": {"type": "string"}},
                "f": True,
                "g": {"type": "array", "items": {"type": "object", "properties": {"h": {}}}},
            },
        },
    },
}


class Conversation:
    """The messages of a shape, and the texts that a prompt of it must have."""

    def __init__(self, shape: str) -> None:
        self.texts: list[str] = []
        self._results: list[str] = []
        self._num_calls = 0
        self.messages = [self._message(letter) for letter in shape]

    def _text(self, kind: str) -> str:
        text = f"Marked{len(self.texts):03}{kind}"
        self.texts.append(text)
        return text

    def _message(self, letter: str) -> dict[str, Any]:
        match letter:
            case "s" | "d":
                role = "system" if letter == "s" else "developer"
                return {"role": role, "content": self._text("system")}
            case "u":
                return {"role": "user", "content": self._text("user")}
            case "n":
                name, text = self._text("name"), self._text("user")
                return {"role": "user", "name": name, "content": text}
            case "a":
                return {"role": "assistant", "content": self._text("answer")}
            case "h":
                text = self._text("answer")
                return {"role": "assistant", "content": text, "reasoning_content": "Past thought."}
            case "U":
                return {"role": "user", "content": ""}
            case "y" | "l":
                text = SCRIPTS if letter == "y" else LONG
                return {"role": "user", "content": f"{text} {self._text('user')}"}
            case "A" | "N" | "k" | "w":
                return {"role": "assistant"} | self._answer(letter)
            case "r" | "R" | "i" | "b":
                return {"role": "tool"} | self._result(letter)
            case "f":
                return {"role": "function", "name": "look_up", "content": self._text("result")}
            case "o":
                called = {"name": "look_up", "arguments": self._arguments()}
                return {"role": "assistant", "content": None, "function_call": called}
        message: dict[str, Any] = {"role": "assistant", "content": None}
        if letter in "CT":
            message["content"] = self._text("beside")
        if letter in "tT":
            message["reasoning_content"] = "Thought before a call."
        calls = [self._call(letter) for _ in range(int(letter) if letter.isdigit() else 1)]
        return message | {"tool_calls": calls}

    def _answer(self, letter: str) -> dict[str, Any]:
        if letter == "A":
            return {"content": ""}
        text = self._text("answer")
        if letter == "k":
            return {"content": f"<think>\nPast thought.\n</think>\n\n{text}"}
        if letter == "w":
            return {"content": text, "refusal": self._text("refusal")}
        return {"content": text, "name": "helper"}

    def _result(self, letter: str) -> dict[str, Any]:
        last = -1 if letter == "R" else 0
        call = self._results.pop(last) if self._results else "call_none"
        content: Any = "" if letter == "b" else self._text("result")
        if letter == "i":
            image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
            content = [{"type": "text", "text": content}, image]
            self.texts.append("An image was left out")
        return {"tool_call_id": call, "content": content}

    def _call(self, letter: str) -> dict[str, Any]:
        self._num_calls += 1
        id_ = f"call{self._num_calls:05}"
        self._results.append(id_)
        arguments = "" if letter == "e" else self._arguments()
        if letter == "x":
            arguments = arguments.removesuffix('"}')
        function = {"name": "look_up", "arguments": arguments}
        return {"id": id_, "type": "function", "function": function}

    def _arguments(self) -> str:
        return json.dumps({"key": self._text("argument")})


def templates(folder: Path) -> Iterator[tuple[str, str | dict[str, str]]]:
    """Yield the name and the text of each chat template below `folder`; some have several."""
    for path in sorted(folder.rglob("*.jinja")):
        yield path.stem, path.read_text()
    for path in sorted(folder.rglob("tokenizer_config.json")):
        found = json.loads(path.read_text()).get("chat_template")
        name = path.relative_to(folder).parts[0] if path.parent != folder else path.stem
        if isinstance(found, list):  # one for chats with tools, one for others
            found = {one["name"]: one["template"] for one in found}
        if found:
            yield name, found


def with_template(template: str | dict[str, str]) -> Tokenizer:
    """Return a tokenizer that can only render."""
    raw = RawTokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    raw.decoder = decoders.ByteLevel()
    library: Any = PreTrainedTokenizerFast
    inner = library(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")
    inner.chat_template = template
    return Tokenizer(inner, TokenBytes(raw), None)


def bodies() -> Iterator[tuple[str, dict[str, Any], list[str]]]:
    """Yield each conversation as the body of a chat, its name, and the texts it has."""
    tool = {"type": "function", "function": TOOLS["plain"]}
    for shape in SHAPES:
        conversation = Conversation(shape)
        body: dict[str, Any] = {"messages": conversation.messages}
        yield shape, body, conversation.texts
        yield f"{shape} + tool", body | {"tools": [tool]}, [*conversation.texts, "look_up"]
    for shape in ("ua", "sua", "suaua", "sucra", "suaa", "uk", "suak", "uN", "uw", "sucrk"):
        conversation = Conversation(shape)
        body = {"messages": conversation.messages, "continue_final_message": True}
        yield f"{shape} continued", body, conversation.texts
    for name, function in TOOLS.items():
        tools = [{"type": "function", "function": function}]
        conversation = Conversation("sucr")
        body = {"messages": conversation.messages, "tools": tools}
        yield f"tool {name}", body, [*conversation.texts, "look_up"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path, nargs="+")
    parser.add_argument("--refused", action="store_true", help="list each refusal and each loss")
    options = parser.parse_args()
    total: Counter[str] = Counter()
    for folder in options.folder:
        for name, template in templates(folder):
            began = time.perf_counter()
            tokenizer = with_template(template)
            tokenizer.compile_template()
            tokenizer = replace(tokenizer, support=tokenizer.probed())
            took = time.perf_counter() - began
            own: Counter[str] = Counter()
            for shape, body, texts in bodies():
                outcome, why = outcome_of(tokenizer, body, texts)
                own[outcome] += 1
                if options.refused and outcome != "fine":
                    print(f"    {outcome}: {shape}: {why}")
            total += own
            print(f"{name}: {dict(own)}, compiled and probed in {took:.2f} s")
    print(f"all: {dict(total)}")
    sys.exit(0 if total["lost"] == 0 else 1)


def outcome_of(tokenizer: Tokenizer, body: dict[str, Any], texts: list[str]) -> tuple[str, str]:
    """Return "fine", "refused" or "lost", and why."""
    try:
        formats = formats_of(tokenizer.template)
        prompt = chat_prompt(tokenizer, check_object(ChatRequest, body), formats).text
    except ApiError as error:
        return "refused", error.message
    missing = [text for text in texts if text not in prompt]
    return ("lost", ", ".join(missing)) if missing else ("fine", "")


if __name__ == "__main__":
    main()
