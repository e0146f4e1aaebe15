"""Changes of a request's body: of its structure, its types, its texts, and its conversation."""

import json
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from tests.fuzz.requests.clients import REQUESTS

LARGE_TEXT = 70_000  # characters: the body is then read in the text process only
MOST_REPEATED = 200  # copies of an element, and of the elements of a repeated conversation


def _nested(depth: int) -> Any:
    value: Any = "end"
    for level in range(depth):
        value = [value] if level % 2 else {"type": value}
    return value


VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 1.0, 1.5, -0.0, 2**31, 2**53 + 1, 2**64, 10**30, 1e308, -1e-300),
    *("", " ", "\n", "\t\r\n", "0", "-1", "null", "{}", "[]", "a.b", "x" * 300),
    *([], [[]], [None], [""], {}, {"": ""}, {"type": "text"}, {"type": None}, {"role": "user"}),
    *([{"type": "text", "text": "part"}], [{"type": "image_url", "image_url": {"url": "data:"}}]),
    *({"type": "object", "properties": {"a": {"$ref": "#"}}}, {"$ref": "#/$defs/none"}),
)
DEEP: tuple[Any, ...] = (_nested(20), _nested(62), _nested(90))
# Texts that templates, parsers, tokenizers or JSON treat in a special way.
TEXTS = (
    *("é😀", "\u202e‮txt", "\u0000", "\x1b[2J", "\ufeff", "\u2028\u2029", "ﷺ" * 50, "a\u0301" * 40),
    *("\ud83d", "\udc00\ud800", "<|im_end|>\n<|im_start|>system\n", "<s>[INST]", "</think>"),
    *("<think>", "<tool_call>", "[TOOL_CALLS]", "{{ messages }}", "{% endfor %}", "{# x", "%s{0}"),
    *(
        "&amp;<b>",
        '"\\"',
        "\\ud83d",
        "C:\\new\\u",
        "'quoted'",
        "```json\n{}\n```",
        "\r\n\r\n",
        " lead",
    ),
)
ARGUMENTS = (
    *('{"a": "\\ud83d"}', '{"\\udc00": 1}', '{"a": 1, "a": 2}', '{"a": NaN}', '{"a": 1e999}'),
    *('{"a": ' + "9" * 5000 + "}", '{"a": "b"', "{'a': 1}", "null", "[]", "[1]", '"text"', "7"),
    *('{"a": {"b": ["c"]}}', '{"": ""}', " {} ", "{}{}", '{"a": "x\ny"}', "[" * 3000, "\ud83d"),
)
WORDS = (
    *("user", "assistant", "system", "developer", "tool", "function", "text", "input_text", "type"),
    *("output_text", "image", "image_url", "input_image", "refusal", "thinking", "reasoning"),
    *("tool_use", "tool_result", "function_call", "function_call_output", "custom", "namespace"),
    *("custom_tool_call", "web_search_call", "mcp_call", "message", "document", "auto", "required"),
    *(
        "any",
        "none",
        "json_schema",
        "json_object",
        "allowed_tools",
        "content",
        "role",
        "name",
        "id",
    ),
    *("messages", "input", "tools", "tool_calls", "arguments", "output", "summary", "system"),
    *("tool_choice", "stream", "stop", "n", "max_tokens", "response_format", "call_id", "parts"),
)


def make_request(seed: int) -> tuple[str, Any]:
    """Return the path and the body of one request, which the seed determines."""
    rng = random.Random(seed)
    path, right = rng.choice(REQUESTS)
    body = deepcopy(right)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        changes, weights = zip(*_CHANGES, strict=True)
        (change,) = rng.choices(changes, weights)
        change(body, rng)
    return path, body


def _place(body: Any, rng: random.Random) -> tuple[Any, Any] | None:
    """Return a container inside of `body` and one of its keys; None if there is none.

    Half of the time each key of the whole body is as likely as the others, however rare it is.
    """
    if rng.random() < 0.5:
        by_key: dict[str, list[Any]] = {}
        _collect(body, by_key)
        if by_key:
            name = rng.choice([*by_key])
            return rng.choice(by_key[name]), name
    found = None
    while body and isinstance(body, dict | list):
        key = rng.choice([*body]) if isinstance(body, dict) else rng.randrange(len(body))
        found = (body, key)
        if rng.random() < 0.2:
            break
        body = body[key]
    return found


def _collect(node: Any, by_key: dict[str, list[Any]]) -> None:
    """Collect the objects inside of `node` by each of their keys."""
    if isinstance(node, dict):
        for key in node:
            by_key.setdefault(key, []).append(node)
    for inner in node.values() if isinstance(node, dict) else node:
        if isinstance(inner, dict | list):
            _collect(inner, by_key)


def _at_place(change: Callable[[Any, Any, random.Random], None]) -> "_Change":
    def apply(body: Any, rng: random.Random) -> None:
        place = _place(body, rng)
        if place is not None:
            change(*place, rng)

    return apply


def _delete(inside: Any, key: Any, rng: random.Random) -> None:
    del inside[key]


def _duplicate(inside: Any, key: Any, rng: random.Random) -> None:
    twin = deepcopy(inside[key])
    if isinstance(inside, list):
        inside.insert(rng.randrange(len(inside) + 1), twin)
    else:
        inside[rng.choice(WORDS)] = twin


def _repeat(inside: Any, key: Any, rng: random.Random) -> None:
    if isinstance(inside, list) and len(inside) < MOST_REPEATED:
        inside[key:key] = [deepcopy(inside[key]) for _ in range(rng.randrange(MOST_REPEATED))]
    elif isinstance(inside[key], str):
        inside[key] = inside[key][:1000] * rng.randrange(1, 50)


def _replace(inside: Any, key: Any, rng: random.Random) -> None:
    inside[key] = deepcopy(rng.choice(VALUES))


def _retag(inside: Any, key: Any, rng: random.Random) -> None:
    inside[key] = rng.choice(WORDS)


def _nest(inside: Any, key: Any, rng: random.Random) -> None:
    value = inside[key]
    text = value if isinstance(value, str) else "x"
    inside[key] = rng.choice(
        (
            [value],
            {"type": "text", "text": text},
            [{"type": "text", "text": text}],
            {rng.choice(WORDS): value},
            *DEEP,
        )
    )


def _retype(inside: Any, key: Any, rng: random.Random) -> None:
    value = inside[key]
    match value:
        case str():
            inside[key] = rng.choice(
                ([value], len(value), {"text": value}, value.encode(errors="replace").hex())
            )
        case bool() | int() | float() | None:
            inside[key] = rng.choice((str(value), [value], {"value": value}))
        case list():
            inside[key] = rng.choice((json.dumps(value), dict(zip(WORDS, value, strict=False)), ""))
        case _:
            inside[key] = rng.choice((json.dumps(value), [*value], [*value.values()]))


def _empty(inside: Any, key: Any, rng: random.Random) -> None:
    kind = type(inside[key])
    inside[key] = kind() if kind in (str, list, dict) else None


def _text(inside: Any, key: Any, rng: random.Random) -> None:
    value, other = inside[key], rng.choice(TEXTS)
    if key in ("arguments", "guided_json"):
        inside[key] = rng.choice(ARGUMENTS)
    elif isinstance(value, str):
        at = rng.randrange(len(value) + 1)
        inside[key] = rng.choice((other, value[:at] + other + value[at:]))


def _arguments(body: Any, rng: random.Random) -> None:
    """Replace the arguments of one call."""
    by_key: dict[str, list[Any]] = {}
    _collect(body, by_key)
    if "arguments" in by_key:
        rng.choice(by_key["arguments"])["arguments"] = rng.choice((*ARGUMENTS, *VALUES))


def _rename(inside: Any, key: Any, rng: random.Random) -> None:
    if isinstance(inside, dict):
        inside[rng.choice((*WORDS, key.upper(), f"{key}s", ""))] = inside.pop(key)
    else:
        rng.shuffle(inside)


def _large(body: Any, rng: random.Random) -> None:
    """Lengthen a text so much that the front end does not read the body itself."""
    place = _place(body, rng)
    if place is not None and isinstance(place[0][place[1]], str):
        place[0][place[1]] += " long" * (LARGE_TEXT // 5)


def _swap(body: Any, rng: random.Random) -> None:
    """Put a value of another client's body in place of one, or add it."""
    other = rng.choice(REQUESTS)[1]
    taken, place = _place(deepcopy(other), rng), _place(body, rng)
    if taken is None or place is None:
        return
    value = taken[0][taken[1]]
    if isinstance(place[0], dict) and isinstance(taken[1], str) and rng.random() < 0.5:
        place[0][taken[1]] = value
    else:
        place[0][place[1]] = value


def _splice(body: Any, rng: random.Random) -> None:
    """Put a part of another client's conversation into this one, perhaps of another API."""
    other = deepcopy(rng.choice(REQUESTS)[1])
    own, others = _conversation(body), _conversation(other)
    if own is None or not others:
        return
    first = rng.randrange(len(others))
    at = rng.randrange(len(own) + 1)
    own[at:at] = others[first : first + rng.randrange(1, 6)]


def _turn(body: Any, rng: random.Random) -> None:
    """Move, drop or repeat one message of the conversation."""
    own = _conversation(body)
    if not own:
        return
    message = own.pop(rng.randrange(len(own)))
    for _ in range(rng.choice((0, 1, 1, 2))):
        own.insert(rng.randrange(len(own) + 1), deepcopy(message))


def _conversation(body: Any) -> list[Any] | None:
    for key in ("messages", "input"):
        if isinstance(body, dict) and isinstance(body.get(key), list):
            found: list[Any] = body[key]
            return found
    return None


_Change = Callable[[Any, random.Random], None]
_CHANGES: Sequence[tuple[_Change, int]] = (
    (_at_place(_delete), 10),
    (_at_place(_duplicate), 6),
    (_at_place(_repeat), 3),
    (_at_place(_replace), 12),
    (_at_place(_retag), 8),
    (_at_place(_nest), 6),
    (_at_place(_retype), 8),
    (_at_place(_empty), 8),
    (_at_place(_text), 20),
    (_arguments, 8),
    (_at_place(_rename), 5),
    (_large, 2),
    (_swap, 10),
    (_splice, 12),
    (_turn, 12),
)
