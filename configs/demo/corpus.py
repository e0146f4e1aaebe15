"""The text that the demo model learns, written by seeded generators: nothing is downloaded.

`training_chats` and `training_stories` are the training text; `held_out_chats` uses names, cities,
numbers and phrases that no training text holds. `is_held_out` draws the border by the prompt
itself: a training chat whose prompt (at any turn) would equal a held-out one is thrown away.
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

# How many conversations of each family one unit of `scale` holds.
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
    """What identifies a prompt: its user turns, whatever system prompt or tools go with them."""
    return json.dumps([m["content"] for m in messages if m["role"] == "user"])


def held_out_chats(seed: int = 1) -> list[Chat]:
    """Ten conversations of each family, all prompts different."""
    rng = random.Random(seed)
    chosen: dict[str, Chat] = {}
    for family in FAMILIES:
        size = len(chosen) + HELD_OUT_PER_FAMILY
        while len(chosen) < size:
            chat = family(rng, HELD_OUT)
            chosen.setdefault(prompt_key(chat.prompt), chat)
    return list(chosen.values())


def prompts_of(chat: Chat) -> Iterator[tuple[Message, ...]]:
    """The prompt of every answer in a conversation."""
    for end, message in enumerate(chat.messages):
        if message["role"] == "assistant":
            yield chat.messages[:end]


def training_chats(seed: int = 0, scale: float = 1.0) -> list[Chat]:
    """All conversations for training, shuffled, without any held-out prompt."""
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
    """Stories without a chat around them, for plain completions."""
    rng = random.Random(seed)
    return [
        story(rng, TRAINING.name(rng), rng.choice(TRAINING.animals), TRAINING)
        for _ in range(int(PLAIN_STORIES * scale))
    ]


def training_sheets(seed: int = 4, scale: float = 1.0) -> list[str]:
    """Sums line by line: numbers are learned from many examples, and a chat holds too few."""
    rng = random.Random(seed)
    sheets = []
    for _ in range(int(SHEETS * scale)):
        sums_of_sheet = [equation(rng, TRAINING) for _ in range(SHEET_LINES)]
        sheets.append("\n".join(f"{a} {sign} {b} = {c}." for a, sign, b, c in sums_of_sheet))
    return sheets
