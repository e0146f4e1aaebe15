"""The kinds of requests that an engine's death must not change, for each API that has them."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.server.test_demo import STARTERS, STORY, TOOLS

Body = dict[str, Any]

PATHS = {
    "chat": "/chat/completions",
    "completions": "/completions",
    "responses": "/responses",
    "messages": "/messages",
}
MOST_TOKENS = 250
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 9},
        "tags": {"items": {"type": "number"}},
    },
    "required": ["name", "tags"],
    "additionalProperties": False,
}
NEAR_LIMIT = (26, 34, 45, 60)  # tokens: the shorter limits decide some tokens of the answer
REGEX = "[a-f]{20,300}-[0-9]+"
FUNCTIONS = [tool["function"] for tool in TOOLS]
QUESTION = next(starter["messages"] for starter in STARTERS if starter["id"] == "tool_call")
PENALTIES = {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.1}
BIAS = {"logit_bias": {"40": 2, "50": -100}, "min_tokens": 150}
STOPS = [" the end", "zzz", "very happy"]
PREDICTED = {"type": "content", "content": "Once upon a time"}

NOT_MESSAGES = ("chat", "completions", "responses")


def _each(doors: Iterable[str], fields: Body) -> dict[str, Body]:
    return dict.fromkeys(doors, fields)


# What each kind adds to the bodies of the APIs. Where an API is missing, it has no such field.
KINDS: dict[str, dict[str, Body]] = {
    "greedy": _each(PATHS, {"temperature": 0}),
    "sampled": _each(PATHS, {"top_p": 0.9}),
    "penalties": _each(NOT_MESSAGES, PENALTIES),
    "bias": _each(NOT_MESSAGES, BIAS),
    "stop": {
        **_each(NOT_MESSAGES, {"stop": STOPS}),
        "messages": {"stop_sequences": STOPS},
    },
    "logprobs": {
        "chat": {"logprobs": True, "top_logprobs": 2},
        "completions": {"logprobs": 3},
        "responses": {"include": ["message.output_text.logprobs"], "top_logprobs": 2},
    },
    "n": _each(("chat", "completions"), {"n": 3}),
    "best_of": {"completions": {"prompt": ["Once", "The sky"], "n": 1, "best_of": 3}},
    "echo": {"completions": {"logprobs": 1, "echo": True}},
    "schema": {
        "chat": {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "p", "schema": PERSON},
            }
        },
        "completions": {"guided_json": PERSON},
        "responses": {"text": {"format": {"type": "json_schema", "name": "p", "schema": PERSON}}},
        "messages": {"output_config": {"format": {"type": "json_schema", "schema": PERSON}}},
    },
    "regex": _each(("chat", "completions"), {"guided_regex": REGEX}),
    "tools": {
        "chat": {"tools": TOOLS, "messages": QUESTION, "tool_choice": "required"},
        "responses": {
            "tools": [{"type": "function", **function} for function in FUNCTIONS],
            "input": QUESTION[-1]["content"],
            "tool_choice": "required",
        },
        "messages": {
            "tools": [{"name": f["name"], "input_schema": f["parameters"]} for f in FUNCTIONS],
            "messages": [QUESTION[-1]],
            "tool_choice": {"type": "any"},
        },
    },
    "reasoning": {
        "chat": {"enable_thinking": True, "thinking_budget": 12},
        "responses": {"enable_thinking": True, "thinking_budget": 30},
        "messages": {"thinking": {"type": "enabled", "budget_tokens": 20}},
    },
    "prediction": {"chat": {"prediction": PREDICTED}},
}
LIMITS = {"responses": "max_output_tokens"}  # the names of the token limit, where not max_tokens
PROMPTS: dict[str, Body] = {
    "chat": {"messages": STORY},
    "completions": {"prompt": "Once upon a time"},
    "responses": {"input": "Tell me a story."},
    "messages": {"messages": STORY},
}


@dataclass(frozen=True)
class Question:
    """A request of some kind to an API, streamed or whole, for at most `most` tokens."""

    kind: str
    door: str
    is_streamed: bool
    seed: int
    most: int = MOST_TOKENS

    def __str__(self) -> str:
        return f"{self.kind}, {self.door}, {'streamed' if self.is_streamed else 'whole'}"

    @property
    def path(self) -> str:
        """The path of its API, below /v1."""
        return PATHS[self.door]

    def body(self, model: str) -> Body:
        """Return the whole body."""
        fields = KINDS[self.kind][self.door]
        most = max(self.most, fields.get("min_tokens", 0))
        if self.kind == "schema":
            most = NEAR_LIMIT[self.seed % len(NEAR_LIMIT)]
        limit = LIMITS.get(self.door, "max_tokens")
        body: Body = {"model": model, "temperature": 1, "seed": self.seed, limit: most}
        body |= {"return_token_ids": True, **PROMPTS[self.door], **fields}
        if self.is_streamed:
            body["stream"] = True
            if self.door in ("chat", "completions"):
                body["stream_options"] = {"include_usage": True}
        return body


def questions(seed: int) -> Iterator[Question]:
    """Yield a request of every kind to every API that has it, streamed and whole."""
    for kind, doors in KINDS.items():
        for door in doors:
            yield Question(kind, door, is_streamed=False, seed=seed)
            if kind != "best_of":  # it cannot be streamed
                yield Question(kind, door, is_streamed=True, seed=seed)
