"""A tiny checkpoint whose tokens can spell JSON, with grammars and random schemas for it."""

import json
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.engine.checkpoints import save_tiny
from tests.engine.models import VOCAB

BOS, EOS, TAG = 0, 1, 2
SPECIAL = ("<s>", "</s>", "<tag>")
CHARACTERS = '{}[]":,.-+Ġ0123456789abcdefghijklmnopqrstuvwxyzABCDEF_\\Ċ'
MERGES = (
    ("{", '"'),
    ('"', ":"),
    ("Ġ", '"'),
    ('"', ","),
    ('"', "}"),
    ("}", "}"),
    ("t", "r"),
    ("tr", "u"),
    ("tru", "e"),
    ("n", "u"),
    ("l", "l"),
    ("nu", "ll"),
    ("0", "0"),
    ("a", "b"),
    ("ab", "c"),
    ("e", "r"),
)  # there are fewer tokens than rows of the embedding: the others are padding

FORM = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}

_SCRATCH = TemporaryDirectory(prefix="understudy-grammars-")


@cache
def tokenizer() -> Tokenizer:
    """Return a byte-level tokenizer with the characters and some merges of JSON."""
    pieces = [*SPECIAL, *CHARACTERS, *(left + right for left, right in MERGES)]
    assert len(pieces) < VOCAB
    made = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, list(MERGES)))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return made


@cache
def json_checkpoint(seed: int = 0, layers: int = 3) -> Path:
    """Return the folder of a tiny checkpoint with this tokenizer."""
    folder = save_tiny(
        "llama",
        Path(_SCRATCH.name) / f"{seed}-{layers}",
        seed=seed,
        layers=layers,
        vocab_size=VOCAB,
    )
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=tokenizer()).save_pretrained(folder)
    return folder


def ids(text: str) -> list[int]:
    """Return the token ids of a text, without special tokens."""
    encoded: list[int] = tokenizer().encode(text, add_special_tokens=False).ids
    return encoded


def schema_grammar(schema: dict[str, Any]) -> str:
    """Return the grammar of a JSON schema, in llguidance's notation."""
    return json.dumps({"grammars": [{"json_schema": {"x-guidance": FORM, **schema}}]})


def lark(*rules: str) -> str:
    """Return the grammar of these rules of Lark, in llguidance's notation."""
    return json.dumps({"grammars": [{"lark_grammar": "\n".join(rules)}]})


def random_schema(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """Return a schema of nested objects and arrays, with the keywords that clients use."""
    kinds = ["string", "pattern", "integer", "number", "boolean", "enum", "const", "null", "format"]
    if depth < 3:
        kinds += ["object", "object", "array", "anyOf", "ref"]
    match "object" if depth == 0 else chance.choice(kinds):
        case "object":
            names = chance.sample(["name", "age", "ok", "tags", "sub", "a", "b", "c_d"], 4)
            names = names[: chance.randint(0, 4)]
            return {
                "type": "object",
                "properties": {name: random_schema(chance, depth + 1) for name in names},
                "required": [name for name in names if chance.random() < 0.7],
                "additionalProperties": chance.random() < 0.2,
            }
        case "array":
            least = chance.randint(0, 3)
            items = random_schema(chance, depth + 1)
            bounds = {"minItems": least, "maxItems": least + chance.randint(0, 4)}
            return {"type": "array", "items": items, **(bounds if chance.random() < 0.7 else {})}
        case "anyOf":
            return {"anyOf": [random_schema(chance, depth + 1) for _ in range(2)]}
        case "ref":
            inner = random_schema(chance, depth + 1)
            return {"type": "array", "items": inner, "maxItems": 2}
        case "string":
            return {"type": "string", "maxLength": chance.randint(1, 30)}
        case "pattern":
            return {"type": "string", "pattern": chance.choice(["^[a-z]+$", "^[0-9]{3}-[A-F]{2}$"])}
        case "format":
            return {"type": "string", "format": chance.choice(["date", "time", "ipv4", "uuid"])}
        case "integer":
            low = chance.randint(-50, 50)
            return {"type": "integer", "minimum": low, "maximum": low + chance.randint(0, 1000)}
        case "enum":
            return {"enum": chance.sample(["red", "green", "blue", 1, 2.5, None, True], 3)}
        case "const":
            return {"const": chance.choice(["fixed value", 7, [1, "two"], {"k": None}])}
        case kind:
            return {"type": kind}
