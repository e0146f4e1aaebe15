"""Ways to spoil a file: by its structure, by its bytes, and by what it is."""

import json
import os
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

# Values that code which expects another one may fail on, or take unbounded time or memory for.
HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 3, 7, 10**9, 10**12, 2**31, 2**63, -(2**63), 10**18, 10**40),
    *(0.0, -0.5, 1.5, 3.0, 131072.0, 1e-320, 1e308, float("nan"), float("inf"), float("-inf")),
    *(
        "",
        "x",
        "full_attention",
        "default",
        "../../etc/passwd",
        "\x1b[2J\x1b]0;x\x07",
        "\u202e",
        "\0",
    ),
    *("\ud800", "9" * 5000, "a" * 100_000, "{{ 1 }}", "{% for x in y %}", "float16", "nn", "silu"),
    *([], [[]], [1], [0, 1, 2], ["a"], [None], [1.5] * 64, list(range(10_000)), {}, {"a": 1}),
    *({"rope_type": "x"}, {"type": "dynamic", "factor": 0}, {"": {"": {}}}, [{"a": []}]),
)
# Keys that the library, or code of ours, looks at; each family has only some of them.
CONFIG_KEYS = (
    *("num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads"),
    *("num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rope_theta"),
    *("rope_scaling", "rope_parameters", "sliding_window", "layer_types", "hidden_act"),
    *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
    *("rms_norm_eps", "quantization_config", "dtype", "torch_dtype", "tie_word_embeddings"),
    *("num_labels", "id2label", "eos_token_id", "text_config", "model_type", "architectures"),
    *("attention_bias", "max_window_layers", "use_sliding_window", "per_layer_config", "auto_map"),
    *("partial_rotary_factor", "original_max_position_embeddings", "n_layer", "n_embd", "n_head"),
    *("attention_chunk_size", "final_logit_softcapping", "query_pre_attn_scalar", "pad_token_id"),
)
QUANTIZATIONS: tuple[dict[str, Any], ...] = (
    {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    {"quant_method": "mxfp4", "modules_to_not_convert": 5},
    {"quant_method": "fp8", "fmt": []},
    {"quant_method": ["gptq"], "bits": 10**9},
    {"bits": 4},
    {"quant_method": "bitsandbytes", "llm_int8_skip_modules": {"a": 1}, "load_in_4bit": "yes"},
    {"quant_method": "gguf", "architecture": ["llama"], "tensors": {"output.weight": 10**9}},
    {"quant_method": "gguf", "architecture": "llama", "tensors": {"output.weight": "Q8_0"}},
)


def spoil_json(values: Any, rng: random.Random, keys: tuple[str, ...] = ()) -> bytes:
    """Return a JSON document with one to three places spoiled."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _spoil_place(values, rng, keys)
    text = json.dumps(values)
    if rng.random() < 0.15:
        text = _spoil_text(text, rng)
    raw = text.encode("utf-8", errors="surrogatepass")
    return spoil_bytes(raw, rng) if rng.random() < 0.1 else raw


def _spoil_place(values: Any, rng: random.Random, keys: tuple[str, ...]) -> None:
    place, key = values, None
    for _ in range(rng.choice((1, 1, 2, 3, 4))):
        inside = place if key is None else place[key]
        if not isinstance(inside, dict | list) or not inside:
            break
        place = inside
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
    if keys and isinstance(values, dict) and rng.random() < 0.5:
        place, key = values, rng.choice(keys)
    if key is None:
        return
    act = rng.random()
    if act < 0.12 and isinstance(place, dict):
        place.pop(key, None)
    elif act < 0.2:
        place[key] = _nested(rng.choice((30, 70, 400)))
    elif act < 0.26 and key == "quantization_config":
        place[key] = deepcopy(rng.choice(QUANTIZATIONS))
    elif act < 0.32 and isinstance(place, dict) and isinstance(place.get(key), int | float):
        place[key] = place[key] * rng.choice((-1, 2, 1000, 10**7)) + rng.choice((0, 1))
    else:
        place[key] = deepcopy(rng.choice(HOSTILE))


def _nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


def _spoil_text(text: str, rng: random.Random) -> str:
    at = rng.randrange(len(text) + 1)
    deep = rng.choice((100, 100_000, 1_000_000))
    return rng.choice(
        (
            "\ufeff" + text,
            text.replace("}", ",}", 1),
            text[:-1] + "," + text[1:],  # every key twice
            text[:at] + "[" * deep + text[at:],
            "[" * deep,
            '{"a":' * deep,
            text[:at] + "9" * 100_000 + text[at:],
            text.replace(": ", ": 1e999, ", 1),
            text[:at],
            '"' + '\\"' * 200_000,
            "null",
            "[]",
            "",
        )
    )


def spoil_bytes(raw: bytes, rng: random.Random) -> bytes:
    """Return bytes with some flipped, cut off, inserted or repeated."""
    found = bytearray(raw)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(found) + 1)
        act = rng.randrange(5)
        if act == 0 and at < len(found):
            found[at] ^= 1 << rng.randrange(8)
        elif act == 1:
            del found[at:]
        elif act == 2:
            found[at:at] = rng.randbytes(rng.choice((1, 8, 4096)))
        elif act == 3:
            found[at:at] = found[: rng.choice((1, 100, 10_000))]
        else:
            del found[at : at + rng.choice((1, 8, 1000))]
    return bytes(found)


def _folder(path: Path) -> None:
    path.mkdir()


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _nothing(path: Path) -> None:
    path.symlink_to(path.name + ".gone")


def _empty(path: Path) -> None:
    path.touch()


def _large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(3 << 30)


def _utf16(path: Path) -> None:
    path.write_bytes('{"a": 1}'.encode("utf-16"))


def _pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")


KINDS: tuple[Callable[[Path], None], ...] = (
    *(_folder, _loop, _endless, _nothing, _empty, _large, _utf16, _pointer),
    os.mkfifo,
)


def replace_file(path: Path, rng: random.Random) -> None:
    """Put something else in the place of a file."""
    path.unlink(missing_ok=True)
    rng.choice(KINDS)(path)
