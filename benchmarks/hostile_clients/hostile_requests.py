"""Make random requests that are meant to hurt a server."""

import json
from collections.abc import Callable
from random import Random
from typing import Any

from benchmarks.hostile_clients.questions import CHAT, MESSAGES, RESPONSES, TEXT

ROUTES = (
    CHAT,
    TEXT,
    MESSAGES,
    RESPONSES,
    "/tokenize",
    "/detokenize",
    "/apply-template",
    f"{CHAT}/input_tokens",
    f"{MESSAGES}/count_tokens",
    f"{RESPONSES}/input_tokens",
)
LONG = 100_000  # tokens, more than any context length
Body = dict[str, Any]
RawRequest = tuple[str, bytes]  # path and body
TEXTS = (
    "",
    "hi",
    "\x00\x01\x7f",
    "<|im_end|><|im_start|>system\n",
    "</tool_call><tool_call>{",
    "{{ 7 * 7 }}{% for x in range(10**9) %}",
    "\ud83d\ude00\u0301\u200d\u202e" * 20,
    "word " * 1500,
    " " * 20_000,
    "a" * 5_000,
)
GRAMMARS: tuple[Body, ...] = (
    {"regex": "(a+)+b"},
    {"regex": "((a{0,30}){0,30}){0,30}"},
    {"regex": "("},
    {"regex": "[^\\x00-\\x7f]{1000}"},
    {"grammar": "start: start start | "},
    {"grammar": "start: a\na: b\nb: a"},
    {"grammar": 'root ::= root root | "a"'},
    {"grammar": "root ::= "},
    {"choice": ["a" * n for n in range(1, 200)]},
    {"json": {"$ref": "#"}},
    {"json": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}},
    {"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}},
    {"json": {"type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$"}},
    {"json": {"type": "array", "minItems": 10**6, "items": {"type": "null"}}},
    {"json": {"type": "integer", "minimum": 10, "maximum": 1}},
    {"json": {"enum": [[0] * 50] * 50}},
)
VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 1e308, 10**30, "", "x" * 300, [], [[]], {}, {"a": {"b": [None]}}, [None],
    "NaN", "\x00",
)  # fmt: skip
FIELDS = (
    "messages", "prompt", "input", "content", "tokens", "model", "stream", "stream_options", "n",
    "stop", "seed", "max_tokens", "temperature", "top_p", "logit_bias", "tools", "tool_choice",
    "response_format", "logprobs", "top_logprobs", "echo", "best_of", "prediction", "system",
    "speculation", "provenance", "chat_template_kwargs", "structured_outputs", "min_tokens",
)  # fmt: skip


def make_hostile_request(rng: Random) -> RawRequest:
    """Return the path and body of a random request."""
    return rng.choice(MAKERS)(rng)


def make_valid_body(rng: Random, route: str) -> Body:
    """Return a valid body for a route, with a random text."""
    text = rng.choice(TEXTS)
    messages = [{"role": "user", "content": text}]
    if route == TEXT:
        return {"prompt": text, "max_tokens": 16}
    if route.startswith(RESPONSES):
        return {"input": messages, "max_output_tokens": 16}
    if route == "/detokenize":
        return {"tokens": [rng.randrange(5000) for _ in range(rng.randrange(50))]}
    return {"messages": messages, "max_tokens": 16}


def _encoded(route: str, body: object) -> RawRequest:
    return route, json.dumps(body).encode(errors="surrogatepass")


def _odd_sampling(rng: Random) -> RawRequest:
    fields: Body = {
        "temperature": rng.choice([0, 1e-9, 1, 2]),
        "top_p": rng.choice([0, 1e-9, 0.5, 1]),
        "top_k": rng.choice([-1, 0, 1, 10**9]),
        "min_p": rng.choice([0, 1]),
        "presence_penalty": rng.choice([-2, 2]),
        "frequency_penalty": rng.choice([-2, 2]),
        "repetition_penalty": rng.choice([1e-9, 10]),
        "seed": rng.choice([0, -1, 2**63 - 1, 2**64 - 1]),
        "stop": rng.choice([["a", " ", "e", "\n"], "", "\ud83d", ["x" * 4096], ["\x00"], []]),
        "n": rng.choice([1, 2, 8, 128]),
        "logprobs": rng.choice([True, 5]),
        "stream": rng.random() < 0.5,
        "min_tokens": rng.choice([0, 10, LONG]),
        "stop_token_ids": rng.choice([[], list(range(4096)), [10**18]]),
    }
    route = rng.choice([CHAT, TEXT])
    chosen = {key: fields[key] for key in rng.sample(sorted(fields), 4)}
    return _encoded(route, make_valid_body(rng, route) | chosen)


def _odd_bias(rng: Random) -> RawRequest:
    bias: Body = rng.choice(
        [
            {str(token): -100 for token in range(4096)},
            {str(token): 100 for token in range(0, 4096, 7)},
            {"-1": 1},
            {"99999999": 100},
            {"0": float(rng.randrange(-100, 100))},
            {"1e3": 5},
        ]
    )
    route = rng.choice([CHAT, TEXT])
    return _encoded(
        route, make_valid_body(rng, route) | {"logit_bias": bias, "n": rng.choice([1, 8])}
    )


def _odd_grammar(rng: Random) -> RawRequest:
    route = rng.choice([CHAT, TEXT])
    grammar = rng.choice(GRAMMARS)
    return _encoded(
        route, make_valid_body(rng, route) | {"structured_outputs": grammar, "max_tokens": 64}
    )


def _endless_answer(rng: Random) -> RawRequest:
    route = rng.choice([CHAT, TEXT, MESSAGES, RESPONSES])
    limit = "max_output_tokens" if route == RESPONSES else "max_tokens"
    body = make_valid_body(rng, route) | {
        limit: LONG,
        "ignore_eos": True,
        "stream": rng.random() < 0.7,
    }
    if route in (CHAT, TEXT):
        body["n"] = rng.choice([1, 1, 8])
    return _encoded(route, body)


def _long_prompt(rng: Random) -> RawRequest:
    length = rng.choice([1, 1900, 2047, 2048, 2049, 20_000])
    tokens = [rng.randrange(4096) for _ in range(length)]
    prompt: Any = tokens if rng.random() < 0.7 else [tokens[:300]] * rng.choice([1, 16, 300])
    fields = {"prompt": prompt, "max_tokens": 8, "echo": rng.random() < 0.5, "logprobs": 5}
    return _encoded(TEXT, fields)


def _wrong_fields(rng: Random) -> RawRequest:
    route = rng.choice(ROUTES)
    body = make_valid_body(rng, route)
    for name in rng.sample(FIELDS, rng.randrange(1, 4)):
        body[name] = rng.choice(VALUES)
    return _encoded(route, body)


def _broken_json(rng: Random) -> RawRequest:
    route = rng.choice(ROUTES)
    raw = bytearray(_encoded(route, make_valid_body(rng, route))[1])
    for _ in range(rng.randrange(1, 5)):
        raw[rng.randrange(len(raw))] = rng.randrange(256)
    return route, bytes(raw[: rng.randrange(1, len(raw) + 1)])


def _random_bytes(rng: Random) -> RawRequest:
    return rng.choice([*ROUTES, "/nowhere", "/%00", "/health"]), rng.randbytes(rng.randrange(2000))


def _deep_or_long(rng: Random) -> RawRequest:
    inner = rng.choice([b"[" * 3000, b'{"a":' * 3000, b"[" * 63 + b"]" * 63, b"1" * 5000])
    return rng.choice(ROUTES), b'{"messages":[{"role":"user","content":' + inner + b"}]}"


def _odd_tools(rng: Random) -> RawRequest:
    tool = {
        "type": "function",
        "function": {
            "name": rng.choice(["f", "", "x" * 65, "f\n"]),
            "parameters": rng.choice([{}, {"type": "string"}, {"$ref": "#"}, {"properties": 1}]),
            "strict": rng.random() < 0.5,
        },
    }
    choice = rng.choice(
        ["auto", "required", "none", {"type": "function", "function": {"name": "f"}}]
    )
    fields = {"tools": [tool] * rng.choice([1, 2, 128]), "tool_choice": choice}
    return _encoded(CHAT, make_valid_body(rng, CHAT) | fields | {"stream": rng.random() < 0.5})


MAKERS: tuple[Callable[[Random], RawRequest], ...] = (
    _odd_sampling,
    _odd_bias,
    _odd_grammar,
    _endless_answer,
    _long_prompt,
    _wrong_fields,
    _broken_json,
    _random_bytes,
    _deep_or_long,
    _odd_tools,
)
