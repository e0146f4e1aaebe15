"""One case of the fuzz program: a folder with one spoiled file, and what is done with it."""

import json
import random
import shutil
import struct
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from tests.engine.checkpoints import FAMILIES, save_tiny
from tests.engine.models import VOCAB, add_tokenizer
from tests.fuzz.mutations import CONFIG_KEYS, replace_file, spoil_bytes, spoil_json

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
SETTINGS = "port: 0\nmax_queue: 8\nclient_timeout: 5\ncors_origins: [http://localhost:3000]\n"
MODEL = """target: {source: SOURCE, dtype: float32}
draft: {method: ngram, depth: 4}
memory: {device: 256MiB, ram: 1GiB}
sampling: {temperature: 0.5, max_tokens: 8}
aliases: [other]
chat_template: "{{ messages }}"
"""
HOSTILE_YAML = (
    *("a: &a [1,1]\nb: [*a, *a]\n", "<<: {port: 1}\n", "port: 1\nport: 2\n", "? [a]\n: b\n"),
    *("x: !!python/object/apply:os.system ['true']\n", "x: 2020-99-99\n", "x: .nan\n", "1: 2\n"),
    *("draft: " + "[" * 50_000, "x: " + "9" * 10_000, "x: !!binary '%'\n", "\x00", "\ufeffport: 1"),
    *("target: ~\n", "target: {source: '~nobody/x'}\n", "target: {source: '\\0'}\n", "- 1\n"),
    *("memory: {device: " + "9" * 400 + "GiB}\n", "%YAML 9.9\n---\na: 1\n", "a: 1\n---\nb: 2\n"),
    *("target: {source: '" + "a" * 100_000 + "'}\n", "sampling: {temperature: .nan}\n", "\t- a\n"),
    *(
        "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 30)),
        "on: {a: !!set {b}}\n",
    ),
    *(
        "chat_template: x.jinja\n",
        "chat_template: '{% for'\n",
        "device: \x1b[2J\n",
        "x: 0x" + "f" * 9999,
    ),
)
Spoil = Callable[[Path, random.Random], None]


@cache
def base(family: str) -> Path:
    """Return a sound folder of a family, with everything that can be read of one."""
    folder = save_tiny(family, Path(mkdtemp(prefix="fuzz-base-")) / family, vocab_size=VOCAB)
    add_tokenizer(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def _config(folder: Path, rng: random.Random) -> None:
    values = json.loads((folder / "config.json").read_text())
    if rng.random() < 0.15:
        values["model_type"] = rng.choice(sorted(CONFIG_MAPPING.keys()))
    (folder / "config.json").write_bytes(spoil_json(values, rng, CONFIG_KEYS))


def _json(name: str) -> Spoil:
    def spoil(folder: Path, rng: random.Random) -> None:
        values = json.loads((folder / name).read_text())
        (folder / name).write_bytes(spoil_json(values, rng))

    return spoil


def _tokenizer(folder: Path, rng: random.Random) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    if rng.random() < 0.3:  # a part that this tokenizer does not have
        part = rng.choice(("normalizer", "pre_tokenizer", "post_processor", "decoder"))
        values[part] = deepcopy(rng.choice(_PARTS))
    if rng.random() < 0.2:
        values["model"]["vocab"][rng.choice(("x", "", "\x1b"))] = rng.choice((4**16 - 1, 10**6, 0))
    (folder / "tokenizer.json").write_bytes(spoil_json(values, rng))


_PARTS: tuple[dict[str, Any], ...] = (
    {"type": "Split", "pattern": {"Regex": "((a{1000}){1000}){1000}"}, "behavior": "Isolated"},
    {"type": "Split", "pattern": {"Regex": "(" * 3000}, "behavior": "Isolated"},
    {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 10_000},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 10_000},
    {"type": "Precompiled", "precompiled_charsmap": "AAAAAAAAAAAA"},
    {"type": "Precompiled", "precompiled_charsmap": "/////w=="},
    {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    {"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}},
    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"},
    {"type": "WordPiece", "prefix": "##", "cleanup": True},
)


def _index(folder: Path, rng: random.Random) -> None:
    name = "model.safetensors.index.json"
    values = json.loads((folder / name).read_text())
    if rng.random() < 0.3:
        key = rng.choice(list(values["weight_map"]))
        values["weight_map"][key] = rng.choice(("../x", "/etc/passwd", "\x1b[2J", "a/b", ".", "\0"))
    (folder / name).write_bytes(spoil_json(values, rng))


def _safetensors(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(folder.glob("*.safetensors")))
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    act = rng.random()
    if act < 0.6:
        header = spoil_json(json.loads(raw[8 : 8 + length]), rng)
        size = rng.choice((len(header),) * 8 + (0, 2**63, 10**8, len(header) - 1))
        raw = struct.pack("<Q", size) + header + raw[8 + length :]
    elif act < 0.8:
        raw = spoil_bytes(raw, rng)
    elif act < 0.9:
        raw = raw[: 8 + length] + b"\xff" * (len(raw) - 8 - length)  # NaN
    else:
        raw = struct.pack("<Q", 10**7) + b"[" * 10**7
    path.write_bytes(raw)


def _template(folder: Path, rng: random.Random) -> None:
    deep = rng.choice((50, 5000))
    texts = ("{{" + "(" * deep + "1", "{% if a %}" * deep, "{% for", "{{ 9" + "9" * 5000 + " }}")
    path = folder / "chat_template.jinja"
    if rng.random() < 0.6:
        path.write_text(rng.choice((*texts, "{% generation %}", "{{ '\\x' }}", "{% break %}", "")))
    else:
        path.write_bytes(spoil_bytes(TEMPLATE.encode(), rng))


def _another_kind(folder: Path, rng: random.Random) -> None:
    replace_file(rng.choice(sorted(folder.iterdir())), rng)


def _yaml(folder: Path, rng: random.Random) -> None:
    """Spoil a configuration folder, which is made beside the model."""
    path = folder / rng.choice(("understudy.yaml", "models/mine.yaml"))
    text = path.read_text()
    act = rng.random()
    if act < 0.35:
        path.write_text(text + rng.choice(HOSTILE_YAML))
    elif act < 0.5:
        path.write_text(rng.choice(HOSTILE_YAML))
    elif act < 0.8:
        words = text.replace("{", "{ ").split(" ")
        words[rng.randrange(len(words))] = rng.choice(
            ("[]", "{}", "-1", ".inf", "1e999", "~", "yes", "'\\0'", "9" * 500, "!!x y", "*a", "&b")
        )
        path.write_text(" ".join(words))
    elif act < 0.95:
        path.write_bytes(spoil_bytes(text.encode(), rng))
    else:
        replace_file(path, rng)


# (what is spoiled, what is done with it, how often)
CASES: tuple[tuple[str, Spoil, str, int], ...] = (
    ("config", _config, "plan for a card", 15),
    ("config", _config, "plan", 15),
    ("config", _config, "load", 20),
    ("generation config", _json("generation_config.json"), "load", 4),
    ("tokenizer", _tokenizer, "tokenizer", 12),
    ("tokenizer config", _json("tokenizer_config.json"), "tokenizer", 8),
    ("template", _template, "tokenizer", 4),
    ("index", _index, "load", 5),
    ("safetensors", _safetensors, "load", 7),
    ("another kind", _another_kind, "load", 5),
    ("another kind", _another_kind, "tokenizer", 2),
    ("YAML", _yaml, "serve", 10),
)


def make_case(seed: int, place: Path) -> tuple[str, str, Path]:
    """Write the folder of a case. Return what was spoiled, what to do, and the folder."""
    rng = random.Random(seed)
    (spoiled, spoil, act, _) = rng.choices(CASES, [case[3] for case in CASES])[0]
    folder = place / "model"
    shutil.copytree(base(rng.choice(FAMILIES)), folder)
    if act == "serve":
        (folder / "models").mkdir()
        (folder / "understudy.yaml").write_text(SETTINGS + "default_model: mine\n")
        (folder / "models" / "mine.yaml").write_text(MODEL.replace("SOURCE", str(folder)))
    elif act.startswith("plan") and rng.random() < 0.5:  # no weights to compare with
        for path in folder.glob("*.safetensors*"):
            path.unlink()
    spoil(folder, rng)
    return spoiled, act, folder
