"""Random tools with keywords of JSON schema that grammars know, and answers of random tokens."""

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer

from engine.parsing.selection import known_formats
from engine.sampling.grammar.grammar import Grammar, Grammars

DEMO = Path(__file__).parents[3] / "configs/demo/target/tokenizer.json"
EOS = 2
LONGEST = 1000  # tokens of an answer
RETRY = 50  # tokens after which another order of tokens is tried, as texts are ended
WORDS = ("tea", "Ab c", "é|ü", "a<b", "</parameter>", "true", "5", 'q"uote', "null", "[x]", "it's")
PATTERNS = ("^[a-z]{2,5}$", "^a|b$", "[0-9]+", "^(red|green)-\\d$", "^\\S+@x$", "^$|^x+$")

PATTERN_ENDS = ("b", "1", "@x")  # of texts that match them


class Random(random.Random):
    """A maker of random schemas."""

    def tool(self) -> dict[str, Any]:
        """Return the schema of a tool's parameters."""
        keys = self.sample(
            ["key", "n", "limit_2", "path", "opts", "tags", "when"], self.randint(0, 5)
        )
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {key: self.schema(depth=2) for key in keys},
            "required": [key for key in keys if self.random() < 0.6],
            "additionalProperties": False,
        }
        if keys and self.random() < 0.2:
            schema["$defs"] = {"thing": self.schema(depth=1)}
            schema["properties"][keys[0]] = {"$ref": "#/$defs/thing"}
        return schema

    def schema(self, depth: int) -> dict[str, Any]:
        """Return the schema of a value."""
        kinds = ["string"] * 4 + ["integer", "number", "boolean", "null", "union", "enum"]
        kinds += ["array", "object", "any_of"] if depth else []
        match self.choice(kinds):
            case "string":
                return self.string()
            case "integer":
                return {"type": "integer", **self.maybe(minimum=self.randint(-5, 5))}
            case "number":
                return {"type": "number", **self.maybe(maximum=self.randint(10, 99))}
            case "union":
                other = self.choice(["null", "integer", "boolean", "number"])
                return {"type": ["string", other], **self.maybe(minLength=1)}
            case "enum":
                return {"enum": self.sample([*WORDS, 1, 2.5, True, None], self.randint(2, 5))}
            case "array":
                return {"type": "array", "items": self.schema(depth - 1), "maxItems": 3}
            case "object":
                keys = self.sample(["a", "b", "c d"], self.randint(0, 3))
                return {
                    "type": "object",
                    "properties": {key: self.schema(depth - 1) for key in keys},
                    "required": keys[:1],
                    "additionalProperties": False,
                }
            case "any_of":
                return {"anyOf": [self.schema(depth - 1), {"type": "null"}]}
            case kind:
                return {"type": kind}

    def string(self) -> dict[str, Any]:
        """Return the schema of a string."""
        length = self.randint(0, 4)
        return self.choice(
            [
                {"type": "string"},
                {"type": "string", "description": "Any text."},
                {"type": "string", "enum": self.sample(WORDS, 3)},
                {"type": "string", "pattern": self.choice(PATTERNS)},
                {"type": "string", "minLength": length, "maxLength": length + 3},
                {"type": "string", "const": self.choice(WORDS[:4])},
                {"type": "string", "format": self.choice(["date", "uuid", "ipv4"])},
            ]
        )

    def maybe(self, **keywords: Any) -> dict[str, Any]:
        """Return the keywords, or none."""
        return keywords if self.random() < 0.5 else {}


def vocabulary() -> Tokenizer:
    """Return the demo's tokenizer, with the marks of all formats as added tokens."""
    tokenizer = Tokenizer.from_file(str(DEMO))
    marks = {mark for known in known_formats().values() for mark in known.special_tokens}
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in sorted(marks)])
    return tokenizer


def new_grammars(tokenizer: Tokenizer) -> Grammars:
    """Return a compiler of grammars for a tokenizer."""
    return Grammars(tokenizer.to_str, tokenizer.get_vocab_size(), [EOS])


def random_answer(
    grammars: Grammars, grammar: str, ends: Sequence[list[int]], seed: int
) -> tuple[list[int], bool]:
    """Return tokens that a grammar allows: some at random, then those that end the answer.

    The second value is whether it has ended: where several calls are allowed, another one may
    always begin.

    Args:
        grammars: the compiler of grammars.
        grammar: the grammar of the answer.
        ends: the tokens of the marks that end a text.
        seed: of the random choices.
    """
    chooser = np.random.default_rng(seed)
    followed = grammars.compile(grammar)
    ids: list[int] = []
    num_random = int(chooser.integers(10, 60))
    ends = [*ends, []]
    while len(ids) < LONGEST:
        if followed.is_accepting() and len(ids) >= num_random:
            return ids, True
        mask = followed.allowed()
        if len(ids) < num_random:
            step = [int(chooser.choice(np.nonzero(mask)[0]))]
        else:
            ends = [*ends[1:], ends[0]]  # an end may be text at this place
            step = next(filter(partial(_matches, followed), ends))
            step = step or [grammars.ranks[len(ids) // RETRY % 2].best(mask)]
        for token in step:
            if token == EOS:
                return ids, True
            followed.consume(token)
            ids.append(token)
            if followed.is_complete():
                return ids, True
    return ids, False


def _matches(followed: Grammar, ids: list[int]) -> bool:
    with followed.trial(ids) as matches:
        return bool(matches)


def decoded(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """Return the text of tokens; bytes that are no text are replaced, as in served answers."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def shown(value: object) -> str:
    """Return a value for an error message."""
    return json.dumps(value, ensure_ascii=False)
