"""Generate the training text of the demo model from seeds, without downloads.

`training_chats`, `training_stories` and `training_sheets` are the training text. `held_out_chats`
uses names, cities, numbers and phrases that do not occur in the training text. A training chat is
dropped if its prompt at any turn equals a held-out prompt.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator

from configs.demo.chats import (
    Chat,
    Message,
    equation,
    explain,
    json_answer,
    reasoning,
    short_tasks,
    small_talk,
    stories,
    sums,
    understudy,
)
from configs.demo.phrases import HELD_OUT, TRAINING, Fillers
from configs.demo.stories import story
from configs.demo.tool_chats import tool_chat

Family = Callable[[random.Random, Fillers], Chat]

# Number of conversations of each family at `scale` 1.
FAMILIES: dict[Family, int] = {
    understudy: 2400,
    explain: 1000,
    stories: 4200,
    small_talk: 2600,
    sums: 6000,
    json_answer: 3600,
    tool_chat: 2800,
    reasoning: 2600,
    short_tasks: 1800,
}
PLAIN_STORIES = 1600
SHEETS = 3000
SHEET_LINES = 22
HELD_OUT_PER_FAMILY = 10


def prompt_key(messages: tuple[Message, ...]) -> str:
    """Return a key for a prompt: its user turns, without system prompt and tools."""
    return json.dumps([m["content"] for m in messages if m["role"] == "user"])


def held_out_chats(seed: int = 1) -> list[Chat]:
    """Return ten held-out conversations of each family with different prompts."""
    rng = random.Random(seed)
    chosen: dict[str, Chat] = {}
    for family in FAMILIES:
        size = len(chosen) + HELD_OUT_PER_FAMILY
        while len(chosen) < size:
            chat = family(rng, HELD_OUT)
            chosen.setdefault(prompt_key(chat.prompt), chat)
    return list(chosen.values())


def prompts_of(chat: Chat) -> Iterator[tuple[Message, ...]]:
    """Yield the prompt of every answer in a conversation."""
    for end, message in enumerate(chat.messages):
        if message["role"] == "assistant":
            yield chat.messages[:end]


def training_chats(seed: int = 0, scale: float = 1.0) -> list[Chat]:
    """Return all training conversations, shuffled, without any held-out prompt."""
    rng = random.Random(seed)
    held_out = {prompt_key(chat.prompt) for chat in held_out_chats()}
    chats = [
        family(rng, TRAINING)
        for family, count in FAMILIES.items()
        for _ in range(int(count * scale))
    ]
    kept = [chat for chat in chats if not any(prompt_key(p) in held_out for p in prompts_of(chat))]
    rng.shuffle(kept)
    return kept


def training_stories(seed: int = 2, scale: float = 1.0) -> list[str]:
    """Return stories without a chat, which train plain completions."""
    rng = random.Random(seed)
    return [
        story(rng, TRAINING.name(rng), rng.choice(TRAINING.animals), TRAINING)
        for _ in range(int(PLAIN_STORIES * scale))
    ]


def training_sheets(seed: int = 4, scale: float = 1.0) -> list[str]:
    """Return sheets of sums, one in each line; chats have too few sums to learn from."""
    rng = random.Random(seed)
    sheets = []
    for _ in range(int(SHEETS * scale)):
        sums_of_sheet = [equation(rng, TRAINING) for _ in range(SHEET_LINES)]
        sheets.append("\n".join(f"{a} {sign} {b} = {c}." for a, sign, b, c in sums_of_sheet))
    return sheets
