"""The tokenizer of the demo models, and the corpus as packed rows of token ids."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from configs.demo.chats import Chat

VOCABULARY = 4096
END_OF_TEXT, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPECIAL = (END_OF_TEXT, START, END)
# Ordinary added tokens: decoding keeps them, because parsers look for them in the text.
MARKS = (
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<tools>",
    "</tools>",
)
# Words with their space in front, single digits (so that sums can be learned), signs, line ends.
WORDS = r"'(?:s|t|re|ve|m|ll|d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
CONTEXT = 2048


def train_tokenizer(texts: Iterable[str], template: Path) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly `VOCABULARY` tokens; raises ValueError on too little text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(f"{WORDS}|{SPACES}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(MARKS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(mark, normalized=False) for mark in MARKS])
    if tokenizer.get_vocab_size() != VOCABULARY:
        raise ValueError(f"{tokenizer.get_vocab_size()} tokens: the text is too uniform")
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=END_OF_TEXT,
        chat_template=template.read_text(),
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
    )


def template_only(template: Path) -> PreTrainedTokenizerFast:
    """A tokenizer that can only render chats: their text is needed to train the real one."""
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=Tokenizer(models.BPE()), chat_template=template.read_text()
    )


def token_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The id of one token; an assertion, since only our own marks are asked for."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(token_id, int)
    return token_id


def render(chat: Chat, tokenizer: PreTrainedTokenizerFast) -> str:
    """The whole conversation as text."""
    messages: list[dict[str, str]] = list(chat.messages)
    tools: list[dict[Any, Any] | Callable[..., Any]] = list(chat.tools)
    return str(tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False))


@dataclass(frozen=True)
class Document:
    """Token ids of one text, and which of them the model is to predict."""

    ids: list[int]
    learned: list[bool]


class Encoder:
    """Turns texts into documents whose answers, and nothing else, are learned."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.end_of_text = token_id(tokenizer, END_OF_TEXT)
        self.end = token_id(tokenizer, END)
        self.header: list[int] = tokenizer.encode(f"{START}assistant\n", add_special_tokens=False)
        self.no_thought: list[int] = tokenizer.encode(
            "<think>\n\n</think>\n\n", add_special_tokens=False
        )

    def plain(self, text: str) -> Document:
        """A text without a chat: all of it is learned."""
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.end_of_text]
        return Document(ids, [True] * len(ids))

    def sheet(self, text: str) -> Document:
        """Lines of sums: what follows each equals sign is learned, the random numbers are not."""
        ids, learned = [], []
        for line in text.splitlines(keepends=True):
            left, right = line.split(" =")
            for part, counts in ((left + " =", False), (right, True)):
                part_ids = self.tokenizer.encode(part, add_special_tokens=False)
                ids += part_ids
                learned += [counts] * len(part_ids)
        return Document([*ids, self.end_of_text], [*learned, False])

    def chat(self, text: str) -> Document:
        """A rendered chat: learned from each answer's first own token to its end mark.

        An empty thinking block belongs to the prompt, so it is not learned.
        """
        ids = [*self.tokenizer.encode(text, add_special_tokens=False), self.end_of_text]
        learned = [False] * len(ids)
        for start in self.answer_starts(ids):
            for place in range(start, ids.index(self.end, start) + 1):
                learned[place] = True
        return Document(ids, learned)

    def answer_starts(self, ids: list[int]) -> Iterator[int]:
        """Where the model's own tokens begin, after the header and an empty thinking block."""
        for place, token in enumerate(ids):
            if token != self.header[0]:
                continue
            start = place + len(self.header)
            if ids[place:start] != self.header:
                continue
            block = ids[start : start + len(self.no_thought)]
            yield start + len(block) if block == self.no_thought else start


def rows(
    documents: list[Document], length: int, rng: random.Random
) -> Iterator[tuple[list[int], list[bool]]]:
    """Rows of `length` tokens for ever; each begins with a document, its last one is cut.

    Rows begin where prompts begin, so the first position means in training what it means in use.
    """
    ids: list[int] = []
    learned: list[bool] = []
    while True:
        for document in rng.sample(documents, len(documents)):
            ids += document.ids
            learned += document.learned
            if len(ids) >= length:
                yield ids[:length], learned[:length]
                ids, learned = [], []


def batches(
    documents: list[Document], length: int, tokens: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches for ever: ids and learned marks, each [tokens // length, length]."""
    stream = rows(documents, length, random.Random(seed))
    while True:
        picked = [next(stream) for _ in range(tokens // length)]
        yield torch.tensor([ids for ids, _ in picked]), torch.tensor([m for _, m in picked])
