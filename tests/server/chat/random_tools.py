"""Random tools with keywords of JSON schema that grammars know, and answers of random tokens."""

import json
import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoModelForCausalLM

from engine.parsing.selection import known_formats
from engine.sampling.grammar.grammar import Grammar, Grammars

DEMO = Path(__file__).parents[3] / "configs/demo/target/tokenizer.json"
EOS = 2
LONGEST = 1000  # tokens of an answer of random tokens
LONGEST_SAMPLED = 120  # tokens of an answer of the demo's model
PROMPT = "<|im_start|>user\nUse the tool.<|im_end|>\n<|im_start|>assistant\n"
RETRY = 50  # tokens after which the choice where no end fits changes
WORDS = ("tea", "Ab c", "é|ü", "a<b", "</parameter>", "true", "5", 'q"uote', "null", "[x]", "it's")
PATTERNS = ("^[a-z]{2,5}$", "^a|b$", "[0-9]+", "^(red|green)-\\d$", "^\\S+@x$", "^$|^x+$")

KEYS = ("key", "n", "limit_2", "path", "opts", "tags", "when")
ODD_KEYS = ("a b", "x-y", "käse", "$top", "a<b", "it's", "name", "arguments")
STRING_FORMATS = ["date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "email"]
STRING_FORMATS += ["hostname", "uri"]
PATTERN_ENDS = ("b", "1", "@x", "Z", "T0S", "D", ".b")  # of texts that match patterns and formats


class Random(random.Random):
    """A maker of random schemas."""

    def tool(self) -> dict[str, Any]:
        """Return the schema of a tool's parameters."""
        keys = self.sample([*KEYS, *(ODD_KEYS if self.random() < 0.2 else ())], self.randint(0, 5))
        schema: dict[str, Any] = {
            "type": "object",
            "properties": {key: self.schema(depth=2) for key in keys},
            "required": [key for key in keys if self.random() < 0.6],
            **self.choice([{"additionalProperties": False}, {}]),
        }
        if keys and self.random() < 0.2:
            schema["$defs"] = {"thing": self.schema(depth=1)}
            schema["properties"][keys[0]] = {"$ref": "#/$defs/thing"}
        elif keys and self.random() < 0.1:
            below = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
            tree = {"type": "object", "properties": {"below": below}, "additionalProperties": False}
            schema["$defs"] = {"tree": tree}
            schema["properties"][keys[0]] = {"$ref": "#/$defs/tree"}
        return schema

    def schema(self, depth: int) -> dict[str, Any]:
        """Return the schema of a value."""
        kinds = ["string"] * 4 + ["integer", "number", "boolean", "null", "union", "enum"]
        kinds += ["multiple", "all_of"]
        kinds += ["array", "tuple", "object", "map", "any_of", "one_of"] if depth else []
        match self.choice(kinds):
            case "string":
                return self.string()
            case "integer":
                low = self.randint(-5, 5)
                most = self.choice([{}, {"maximum": low + 9}, {"exclusiveMaximum": low + 9}])
                return {"type": "integer", **self.maybe(minimum=low), **most}
            case "number":
                least: Any = self.choice([{}, {"exclusiveMinimum": 0}, {"minimum": 0.5}])
                return {"type": "number", **self.maybe(maximum=self.randint(10, 99)), **least}
            case "multiple":
                return {"type": "integer", "multipleOf": self.choice([2, 5, 100])}
            case "all_of":
                return {"allOf": [{"type": "string", "minLength": 2}, {"maxLength": 5}]}
            case "union":
                other = self.choice(["null", "integer", "boolean", "number"])
                return {"type": ["string", other], **self.maybe(minLength=1)}
            case "enum":
                return {"enum": self.sample([*WORDS, 1, 2.5, True, None], self.randint(2, 5))}
            case "array":
                fewest = self.randint(0, 3)
                return {
                    "type": "array",
                    "items": self.schema(depth - 1),
                    "minItems": fewest,
                    "maxItems": fewest + self.randint(0, 2),
                }
            case "tuple":
                parts = [self.schema(depth - 1) for _ in range(2)]
                return {"type": "array", "prefixItems": parts, "items": False, "minItems": 2}
            case "map":
                value = self.schema(depth - 1)
                further = {"patternProperties": {"^x": value}, "additionalProperties": False}
                return {"type": "object", **self.choice([{"additionalProperties": value}, further])}
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
            case "one_of":
                return {"oneOf": [self.string(), {"type": "boolean"}, {"type": "number"}]}
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
                {"type": "string", "format": self.choice(STRING_FORMATS)},
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
            step = step or [_fallback(grammars, mask, chooser, len(ids))]
        for token in step:
            if token == EOS:
                return ids, True
            followed.consume(token)
            ids.append(token)
            if followed.is_complete():
                return ids, True
    return ids, False


def _fallback(grammars: Grammars, mask: Any, chooser: np.random.Generator, count: int) -> int:
    """Return a token where no end fits: the first one allowed, or for a while a random one.

    The first one alone could go on for ever, as in a number of zeros.
    """
    is_random = count // RETRY % 2
    return int(chooser.choice(np.nonzero(mask)[0])) if is_random else grammars.ranks[0].best(mask)


class DemoModel:
    """The demo's model, which samples answers at temperature 1."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        auto: Any = AutoModelForCausalLM
        self._model = auto.from_pretrained(DEMO.parent, dtype=torch.float32).eval()
        self._prompt = tokenizer.encode(PROMPT, add_special_tokens=False).ids

    @torch.inference_mode()
    def answer(self, grammars: Grammars, grammar: str, seed: int) -> tuple[list[int], bool]:
        """Return sampled tokens that a grammar allows, and whether the answer has ended."""
        chooser = torch.Generator().manual_seed(seed)
        followed = grammars.compile(grammar)
        ids: list[int] = []
        step, cache = self._prompt, None
        while len(ids) < LONGEST_SAMPLED:
            found = self._model(torch.tensor([step]), past_key_values=cache, use_cache=True)
            cache = found.past_key_values
            allowed = torch.from_numpy(followed.allowed())
            logits = found.logits[0, -1].masked_fill(~allowed[: found.logits.shape[-1]], -torch.inf)
            token = int(torch.multinomial(logits.softmax(-1), 1, generator=chooser))
            if token == EOS:
                return ids, True
            followed.consume(token)
            ids.append(token)
            if followed.is_complete():
                return ids, True
            step = [token]
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
